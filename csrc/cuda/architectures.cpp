// Says which GPUs a library has code for: "sm_90" is machine code, "compute_90" is PTX, which a driver translates. The
// loader looks for the text before it opens the file.
#include "../common/mark.h"

#ifndef DETKIT_CUDA_ARCHITECTURES
#error "define DETKIT_CUDA_ARCHITECTURES as the words of nvcc, with spaces between (see detkit/ops/_nvcc.py)"
#endif

DETKIT_MARK(detkit_cuda_architectures, "detkit-architectures:", DETKIT_CUDA_ARCHITECTURES);
