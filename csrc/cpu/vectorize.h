// Runs a loop with the widest vectors that the machine has: one binary holds the loop for several instruction sets, and
// the first call chooses among them.
//
//   on_widest_vectors([&]() DETKIT_INLINE { for (int64_t i = 0; i < n; ++i) out[i] = f(in[i]); });
//
// Compilers vectorise loops over code that is inlined and has no branches; a function that is called out of line stays
// as it is. Each operation is rounded by itself, so results do not depend on the machine. `with_fused_products` also
// lets the compiler round a * b + c once where there is an instruction for it: faster, and equal to rounding only.
#pragma once

#include <cstdlib>
#include <string>

#define DETKIT_INLINE __attribute__((always_inline))

namespace detkit {

#if defined(__x86_64__)

enum class Vectors { kBaseline, kAvx2, kAvx512 };

// What the processor has; less where ATEN_CPU_CAPABILITY ("default", "avx2") asks for it, as PyTorch's own kernels do.
inline Vectors choose_vectors() {
  __builtin_cpu_init();
  const char* const set = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string most = set ? set : "";
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!has_avx2 || most == "default") return Vectors::kBaseline;
  return has_avx512 && most != "avx2" ? Vectors::kAvx512 : Vectors::kAvx2;
}

inline Vectors widest_vectors() {
  static const Vectors found = choose_vectors();
  return found;
}

#if defined(__clang__)  // it fuses by the text of an expression, not by function: it never fuses here
#define DETKIT_AVX512 target("avx512f,avx512bw,avx512dq,avx512vl"), min_vector_width(512)
#define DETKIT_FUSED
#else
#define DETKIT_AVX512 target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define DETKIT_FUSED , optimize("fp-contract=fast")
#endif
#define DETKIT_AVX2 target("avx2,fma")

template <class F>
__attribute__((DETKIT_AVX512)) void on_avx512(const F& f) {
  f();
}

template <class F>
__attribute__((DETKIT_AVX2)) void on_avx2(const F& f) {
  f();
}

template <class F>
__attribute__((DETKIT_AVX512 DETKIT_FUSED)) void on_avx512_fused(const F& f) {
  f();
}

template <class F>
__attribute__((DETKIT_AVX2 DETKIT_FUSED)) void on_avx2_fused(const F& f) {
  f();
}

template <class F>
void on_widest_vectors(const F& f) {
  switch (widest_vectors()) {
    case Vectors::kAvx512: return on_avx512(f);
    case Vectors::kAvx2: return on_avx2(f);
    case Vectors::kBaseline: return f();
  }
}

template <class F>
void with_fused_products(const F& f) {
  switch (widest_vectors()) {
    case Vectors::kAvx512: return on_avx512_fused(f);
    case Vectors::kAvx2: return on_avx2_fused(f);
    case Vectors::kBaseline: return f();
  }
}

#else  // the baseline of other machines has the vectors that all of them have (NEON)

template <class F>
void on_widest_vectors(const F& f) {
  f();
}

template <class F>
void with_fused_products(const F& f) {
  f();
}

#endif

}  // namespace detkit
