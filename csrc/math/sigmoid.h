// The sigmoid of a logit with what the losses need of it, each part to full relative accuracy at any logit.
#pragma once

#include "elementary.h"

namespace detkit {

// p = sigmoid(z), q = 1 - p and their logarithms.
template <class T>
struct Sigmoid {
  T p, q, log_p, log_q;

  explicit DETKIT_HD Sigmoid(T z) {
    const T size = std::abs(z);
    const T e = exp_nonpositive(-size);
    T large, log_large;  // of the larger one of p and q
    parts(e, large, log_large);
    const T small = e * large, log_small = log_large - size;
    p = z >= 0 ? large : small;
    q = z >= 0 ? small : large;
    log_p = z >= 0 ? log_large : log_small;
    log_q = z >= 0 ? log_small : log_large;
  }

 private:
  // 1 / (1 + e) and its logarithm, with one division: log1p(e) = 2 atanh(e / (2 + e)).
  static DETKIT_HD void parts(float e, float& large, float& log_large) {
    const float one = 1 + e, two = 2 + e;
    const float inverse = reciprocal(one * two);
    large = inverse * two;
    log_large = -twice_atanh(e * (inverse * one));
  }

  static DETKIT_HD void parts(double e, double& large, double& log_large) {
    large = 1 / (1 + e);
    log_large = -std::log1p(e);
  }
};

}  // namespace detkit
