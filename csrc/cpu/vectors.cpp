// Says which vectors the loops of this library use: `python -m detkit.env` asks.
#include "vectorize.h"

extern "C" __attribute__((visibility("default"), used)) const char* detkit_vectors() {
#if defined(__x86_64__)
  switch (detkit::widest_vectors()) {
    case detkit::Vectors::kAvx512: return "AVX-512";
    case detkit::Vectors::kAvx2: return "AVX2";
    case detkit::Vectors::kBaseline: break;
  }
#endif
  return "the baseline of this kind of machine";
}
