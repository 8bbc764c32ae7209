// Says which GPUs a library has code for: "sm_90" is machine code, "compute_90" is PTX, which a driver translates. The
// loader looks for the text before it opens the file.
#ifndef DETKIT_CUDA_ARCHITECTURES
#error "define DETKIT_CUDA_ARCHITECTURES as the words of nvcc, with spaces between (see detkit/ops/_nvcc.py)"
#endif

#define DETKIT_TEXT_(x) #x
#define DETKIT_TEXT(x) DETKIT_TEXT_(x)
#define DETKIT_MARK_ "detkit-architectures:"

static const char marked[] = DETKIT_MARK_ DETKIT_TEXT(DETKIT_CUDA_ARCHITECTURES);

extern "C" __attribute__((visibility("default"), used)) const char* detkit_cuda_architectures() {
  return marked + sizeof(DETKIT_MARK_) - 1;
}
