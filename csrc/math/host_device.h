// How the functions of these headers are marked: for the device too under nvcc, and inlined on the host, so that a loop
// over them is compiled, whole, for the vectors of the machine it runs on (cpu/vectorize.h).
#pragma once

#ifdef __CUDACC__
#define DETKIT_HD __host__ __device__ inline
#else
#define DETKIT_HD inline __attribute__((always_inline))
#endif
