// Overlap of boxes: xyxy, width = x1 - x0, a negative side counts as 0.
//
// The results are defined operation by operation, and equal the PyTorch reference bit by bit: on the device `product`
// keeps its factors out of fused multiply-adds, elsewhere compile without contraction. A coordinate that is NaN makes
// the area NaN, and with it every comparison false.
#pragma once

#include "host_device.h"

namespace detkit {

// a * b, rounded by itself.
DETKIT_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

DETKIT_HD double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class T>
DETKIT_HD T side(T low, T high) {
  const T length = high - low;
  return length < 0 ? T(0) : length;  // NaN stays
}

template <class T>
struct Box {
  T x0, y0, x1, y1, area;

  Box() = default;
  DETKIT_HD Box(T x0_, T y0_, T x1_, T y1_, T area_) : x0(x0_), y0(y0_), x1(x1_), y1(y1_), area(area_) {}
  explicit DETKIT_HD Box(const T* xyxy)
      : x0(xyxy[0]), y0(xyxy[1]), x1(xyxy[2]), y1(xyxy[3]), area(product(side(x0, x1), side(y0, y1))) {}
};

template <class T>
DETKIT_HD T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = side(a.x0 > b.x0 ? a.x0 : b.x0, a.x1 < b.x1 ? a.x1 : b.x1);
  const T height = side(a.y0 > b.y0 ? a.y0 : b.y0, a.y1 < b.y1 ? a.y1 : b.y1);
  return product(width, height);
}

// Whether a kept box suppresses another: inter > t * union.
template <class T>
DETKIT_HD bool suppresses(const Box<T>& a, const Box<T>& b, T threshold) {
  const T inter = intersection(a, b);
  return inter > product(threshold, a.area + b.area - inter);
}

// A threshold of suppression, and its float32; that is 0 where it is no normal number, which leaves all to float64.
struct Threshold {
  double exact;
  float narrow;

  explicit DETKIT_HD Threshold(double exact_)
      : exact(exact_), narrow(exact_ >= 0x1p-126 ? static_cast<float>(exact_) : 0.0f) {}
};

// Whether two boxes may overlap: those that do not are apart in float64 too. Cheap, for most pairs are apart.
template <class T>
DETKIT_HD bool may_overlap(const T* a, const T* b) {
  return a[0] < b[2] && a[2] > b[0] && a[1] < b[3] && a[3] > b[1];
}

DETKIT_HD bool suppresses(const Box<double>& a, const Box<double>& b, const Threshold& threshold) {
  return suppresses(a, b, threshold.exact);
}

// The same decision for boxes in float32, by float32 where that is beyond doubt: for machines on which float64 is slow.
//
// In units of 2^-24, each side is off by 1 relative to itself, so each area and the intersection by 3; the union, which
// is no smaller than any of them, by 12; its product with the rounded threshold by 14. With what both sides of a
// comparison lose to the margin, that stays below 20, and the margin is 32. It holds among normal numbers: the
// threshold must be one, and the bound, with room for the intersection below it. The sign of a difference is exact, so
// boxes apart are so in float64 too.
DETKIT_HD bool suppresses(const Box<float>& a, const Box<float>& b, const Threshold& threshold) {
  const float width = (a.x1 < b.x1 ? a.x1 : b.x1) - (a.x0 > b.x0 ? a.x0 : b.x0);
  const float height = (a.y1 < b.y1 ? a.y1 : b.y1) - (a.y0 > b.y0 ? a.y0 : b.y0);
  if (!(width > 0 && height > 0)) return false;
  const float inter = product(width, height);
  const float all = a.area + b.area - inter, bound = product(threshold.narrow, all);
  if (bound >= 0x1p-100f && all <= 0x1p100f) {
    constexpr float kMargin = 0x1p-19f;
    if (inter > product(bound, 1 + kMargin)) return true;
    if (inter < product(bound, 1 - kMargin)) return false;
  }
  const double wide_a[] = {a.x0, a.y0, a.x1, a.y1}, wide_b[] = {b.x0, b.y0, b.x1, b.y1};
  return suppresses(Box<double>(wide_a), Box<double>(wide_b), threshold.exact);
}

// Intersection over union; 0 where it is not a number. Without a branch, for vectors: boxes apart give 0 or 0 / 0.
template <class T>
DETKIT_HD T iou(const Box<T>& a, const Box<T>& b) {
  const T inter = intersection(a, b);
  const T ratio = inter / (a.area + b.area - inter);
  return ratio > 0 ? ratio : T(0);
}

}  // namespace detkit
