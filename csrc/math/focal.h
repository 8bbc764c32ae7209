// The focal loss of one logit and its derivative (Lin et al. 2017, eq. 4), in log space.
//
// z is the logit x where the label is the class and -x elsewhere, so p_t = sigmoid(z). With q = 1 - p_t = sigmoid(-z):
//   loss  = -q^gamma log p_t
//   dloss/dz = q^gamma (gamma p_t log p_t - q)
// Powers of q are taken through log q, which stays finite where q itself underflows; so every gamma >= 0 is safe.
#pragma once

#include <cmath>

#include "host_device.h"

namespace detkit {

// p = sigmoid(z), q = 1 - p and their logarithms, each to full relative accuracy.
template <class T>
struct Sigmoid {
  T p, q, log_p, log_q;

  explicit DETKIT_HD Sigmoid(T z) {
    const T e = std::exp(-std::abs(z));
    const T large = 1 / (1 + e);
    const T small = e * large;
    const T log_large = -std::log1p(e);
    const T log_small = log_large - std::abs(z);
    p = z >= 0 ? large : small;
    q = z >= 0 ? small : large;
    log_p = z >= 0 ? log_large : log_small;
    log_q = z >= 0 ? log_small : log_large;
  }
};

template <class T>
struct FocalShape {
  T gamma;

  DETKIT_HD T value(T z) const {
    const Sigmoid<T> s(z);
    return -power(s) * s.log_p;
  }

  DETKIT_HD T derivative(T z) const {
    const Sigmoid<T> s(z);
    return power(s) * (gamma * s.p * s.log_p - s.q);
  }

 private:
  // q^gamma. The paper's choice of 2 needs no exponential; there q^2 underflows only where the product does.
  DETKIT_HD T power(const Sigmoid<T>& s) const { return gamma == T(2) ? s.q * s.q : std::exp(gamma * s.log_q); }
};

// A loss shape with the weights of eq. 5: `on` for the labelled class, `off` for the others.
template <class Shape, class T>
struct Weighted {
  Shape shape;
  T on, off;

  DETKIT_HD T value(T x, bool is_label) const { return is_label ? on * shape.value(x) : off * shape.value(-x); }

  DETKIT_HD T derivative(T x, bool is_label) const {
    return is_label ? on * shape.derivative(x) : -off * shape.derivative(-x);
  }
};

}  // namespace detkit
