// Overlap of boxes: xyxy, width = x1 - x0, a negative side counts as 0.
//
// Compile without contraction to fused multiply-add: the results are defined operation by operation, and equal the
// PyTorch reference bit by bit. A coordinate that is NaN makes the area NaN, and with it every comparison false.
#pragma once

#include "host_device.h"

namespace detkit {

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
      : x0(xyxy[0]), y0(xyxy[1]), x1(xyxy[2]), y1(xyxy[3]), area(side(x0, x1) * side(y0, y1)) {}
};

template <class T>
DETKIT_HD T intersection(const Box<T>& a, const Box<T>& b) {
  const T width = side(a.x0 > b.x0 ? a.x0 : b.x0, a.x1 < b.x1 ? a.x1 : b.x1);
  const T height = side(a.y0 > b.y0 ? a.y0 : b.y0, a.y1 < b.y1 ? a.y1 : b.y1);
  return width * height;
}

// Whether a kept box suppresses another: inter > t * union.
template <class T>
DETKIT_HD bool suppresses(const Box<T>& a, const Box<T>& b, T threshold) {
  const T inter = intersection(a, b);
  return inter > threshold * (a.area + b.area - inter);
}

// Intersection over union; 0 where it is not a number. Without a branch, for vectors: boxes apart give 0 or 0 / 0.
template <class T>
DETKIT_HD T iou(const Box<T>& a, const Box<T>& b) {
  const T inter = intersection(a, b);
  const T ratio = inter / (a.area + b.area - inter);
  return ratio > 0 ? ratio : T(0);
}

}  // namespace detkit
