// Functions marked DETKIT_HD compile for the host and, under nvcc, for the device too.
#pragma once

#ifdef __CUDACC__
#define DETKIT_HD __host__ __device__
#else
#define DETKIT_HD
#endif
