// The focal loss of one logit and its derivative (Lin et al. 2017, eq. 4), in log space.
//
// z is the logit x where the label is the class and -x elsewhere, so p_t = sigmoid(z). With q = 1 - p_t = sigmoid(-z):
//   loss  = -q^gamma log p_t
//   dloss/dz = q^gamma (gamma p_t log p_t - q)
#pragma once

#include "sigmoid.h"

namespace detkit {

// q^gamma. The exponents of the paper's main rows need no exponential; the power of 2 underflows only where the product
// does. Any other one is taken through log q, which stays finite where q itself underflows; so every gamma >= 0 is
// safe.
template <class T>
struct PowerZero {
  static constexpr T gamma = 0;
  DETKIT_HD T operator()(const Sigmoid<T>&) const { return 1; }
};

template <class T>
struct PowerOne {
  static constexpr T gamma = 1;
  DETKIT_HD T operator()(const Sigmoid<T>& s) const { return s.q; }
};

template <class T>
struct PowerTwo {
  static constexpr T gamma = 2;
  DETKIT_HD T operator()(const Sigmoid<T>& s) const { return s.q * s.q; }
};

template <class T>
struct PowerAny {
  T gamma;
  DETKIT_HD T operator()(const Sigmoid<T>& s) const { return exp_nonpositive(gamma * s.log_q); }
};

// Any of them, chosen as it runs: for a device, where all elements go the same way at once, so that kernels need not be
// compiled for each.
template <class T>
struct PowerAtRunTime {
  T gamma;
  DETKIT_HD T operator()(const Sigmoid<T>& s) const {
    if (gamma == 1) return PowerOne<T>{}(s);
    if (gamma == 0) return PowerZero<T>{}(s);
    return PowerAny<T>{gamma}(s);
  }
};

template <class T, class Power>
struct FocalLoss {
  Power power;

  DETKIT_HD T value(T z) const {
    const Sigmoid<T> s(z);
    return -power(s) * s.log_p;
  }

  DETKIT_HD T derivative(T z) const {
    const Sigmoid<T> s(z);
    return power(s) * (power.gamma * s.p * s.log_p - s.q);
  }
};

// Calls f with the focal loss of an exponent, as the type that computes it fastest.
template <class T, class F>
auto with_focal_loss(double gamma, F&& f) {
  if (gamma == 0) return f(FocalLoss<T, PowerZero<T>>{});
  if (gamma == 1) return f(FocalLoss<T, PowerOne<T>>{});
  if (gamma == 2) return f(FocalLoss<T, PowerTwo<T>>{});
  return f(FocalLoss<T, PowerAny<T>>{{static_cast<T>(gamma)}});
}

}  // namespace detkit
