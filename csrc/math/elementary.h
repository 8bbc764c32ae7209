// exp and log1p over the ranges that the losses need. For float they are branch-free, so that compilers vectorise a
// loop over them; a NaN stays one. double, which serves the checks, takes the standard library.
//
// The polynomials are minimax fits of our own: relative error 3e-9 (exp) and 5e-9 (log1p), below the rounding of float.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace detkit {

template <class To, class From>
DETKIT_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits need the same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// exp(x) for x <= 0. Below the normal numbers of float the result is 0; on the device, where they cost nothing, it is
// there.
DETKIT_HD float exp_nonpositive(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);  // to a unit of the last place, by the hardware's power of 2: half of the instructions below
#else
  x = x < -88.0f ? -88.0f : x;        // 2^-127 below: the scale becomes 0
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer nearest in the low bits
  const float shifted = x * 1.44269504f + rounder;
  const float n = shifted - rounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n log 2, the first product being exact
  float p = 0.00138144669f;
  p = p * r + 0.00836878042f;
  p = p * r + 0.0416683942f;
  p = p * r + 0.166665201f;
  p = p * r + 0.499999934f;
  p = (p * r) * r + r + 1.0f;
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(rounder) + 127;
  return p * bit_cast<float>(static_cast<uint32_t>(exponent) << 23);
#endif
}

DETKIT_HD double exp_nonpositive(double x) { return std::exp(x); }

// 2 atanh(s) = log((1 + s) / (1 - s)) for s in [0, 1/3].
DETKIT_HD float twice_atanh(float s) {
  const float u = s * s;
  float p = 0.140093862f;
  p = p * u + 0.140002684f;
  p = p * u + 0.200107987f;
  p = p * u + 0.333332076f;
  return 2.0f * (s + s * (u * p));
}

// 1 / x for x in [1, 1e30], to a unit of the last place.
DETKIT_HD float reciprocal(float x) {
#ifdef __CUDA_ARCH__  // an exact division takes a dozen instructions there: the hardware's estimate, once refined
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return __fmaf_rn(r, __fmaf_rn(-x, r, 1.0f), r);
#else
  return 1 / x;
#endif
}

}  // namespace detkit
