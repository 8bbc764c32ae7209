// The variant FL* of the focal loss (Lin et al. 2017, appendix A): cross entropy of a shifted and scaled logit.
//
// With p* = sigmoid(gamma z + beta), z as in focal.h:
//   loss  = -log(p*) / gamma
//   dloss/dz = p* - 1
#pragma once

#include "sigmoid.h"

namespace detkit {

template <class T>
struct FocalStarLoss {
  T gamma, beta;  // gamma > 0

  DETKIT_HD T value(T z) const { return -Sigmoid<T>(gamma * z + beta).log_p / gamma; }

  DETKIT_HD T derivative(T z) const { return -Sigmoid<T>(gamma * z + beta).q; }
};

}  // namespace detkit
