// The hinge loss on the probability p_t (Lin et al. 2017, section 5.1): nothing above a margin.
//
// With p = sigmoid(z), z as in focal.h:
//   loss  = max(0, margin - p)
//   dloss/dz = -p (1 - p) where p < margin, else 0
#pragma once

#include "sigmoid.h"

namespace detkit {

template <class T>
struct HingeLoss {
  T margin;

  DETKIT_HD T value(T z) const {
    const T gap = margin - Sigmoid<T>(z).p;
    return gap < 0 ? T(0) : gap;  // NaN stays
  }

  DETKIT_HD T derivative(T z) const {
    const Sigmoid<T> s(z);
    return s.p >= margin ? T(0) : -(s.p * s.q);
  }
};

}  // namespace detkit
