// What the losses on sigmoids share: each is a sum over classes of weight * f(z), where f is a shape of math/, z the
// logit x at the labelled class and -x at the others, and the weight is that of either kind.
//
// An operation brings the loops of its shape; sigmoid_loss.cpp feeds them.
#pragma once

#include <functional>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../common/loss.h"
#include "../math/labels.h"
#include "vectorize.h"

namespace detkit {

// The loops of a loss shape f over n elements. Sums are taken in a fixed order of 16 interleaved parts, which every
// width of vector can keep.
template <class T>
struct Loops {
  // out = weight * f(z), or weight * f'(z)
  std::function<void(int64_t n, const T* z, const T* weight, T* out)> value, derivative;
  // the sum of weight * f(z); with_derivative also writes out = -weight * f'(z), the gradient to x = -z
  std::function<double(int64_t n, const T* z, const T* weight)> total;
  std::function<double(int64_t n, const T* z, const T* weight, T* out)> total_with_derivative;
};

// Vectors serve float; the double of the checks calls the standard library, which has none.
template <class T, class F>
void vectorized(const F& f) {
  if constexpr (std::is_same_v<T, float>) {
    with_fused_products(f);
  } else {
    f();
  }
}

constexpr int64_t kLanes = 16;

// Lets add(first, count, lanes) add n elements, up to 16 at a time, to as many lanes; returns their sum.
template <class T, class Add>
DETKIT_INLINE inline double sum_of(int64_t n, const Add& add) {
  T lanes[kLanes] = {};
  const int64_t even = n - n % kLanes;
  for (int64_t i = 0; i < even; i += kLanes) add(i, kLanes, lanes);
  add(even, n - even, lanes);
  double sum = 0;
  for (const T lane : lanes) sum += lane;
  return sum;
}

template <class T, class Shape>
Loops<T> loops_of(Shape shape) {
  Loops<T> loops;
  loops.value = [=](int64_t n, const T* z, const T* weight, T* __restrict out) {
    vectorized<T>([&]() DETKIT_INLINE {
      for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * shape.value(z[i]);
    });
  };
  loops.derivative = [=](int64_t n, const T* z, const T* weight, T* __restrict out) {
    vectorized<T>([&]() DETKIT_INLINE {
      for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * shape.derivative(z[i]);
    });
  };
  loops.total = [=](int64_t n, const T* z, const T* weight) {
    double sum = 0;
    vectorized<T>([&]() DETKIT_INLINE {
      sum = sum_of<T>(n, [=](int64_t first, int64_t count, T* lanes) DETKIT_INLINE {
        for (int64_t i = 0; i < count; ++i) lanes[i] += weight[first + i] * shape.value(z[first + i]);
      });
    });
    return sum;
  };
  loops.total_with_derivative = [=](int64_t n, const T* z, const T* weight, T* out) {
    double sum = 0;
    vectorized<T>([&]() DETKIT_INLINE {
      sum = sum_of<T>(n, [=](int64_t first, int64_t count, T* lanes) DETKIT_INLINE {
        T slopes[kLanes];  // written after the loop: what aliases nothing stays in vectors
        for (int64_t i = 0; i < count; ++i) {
          lanes[i] += weight[first + i] * shape.value(z[first + i]);
          slopes[i] = -weight[first + i] * shape.derivative(z[first + i]);
        }
        for (int64_t i = 0; i < count; ++i) out[first + i] = slopes[i];
      });
    });
    return sum;
  };
  return loops;
}

// The shape of a loss, for both types that are computed in.
struct LossShape {
  Loops<float> in_float;
  Loops<double> in_double;

  const Loops<float>& loops(float) const { return in_float; }
  const Loops<double>& loops(double) const { return in_double; }
};

// The loss, reduced as the schema says (`op` names it in errors).
Tensor sigmoid_loss(const char* op, const Tensor& logits, const Tensor& labels, std::optional<double> alpha,
                    int64_t reduction, const LossShape& shape);

// The sum of the loss and its gradient to the logits, in one pass.
std::tuple<Tensor, Tensor> sigmoid_loss_with_gradient(const char* op, const Tensor& logits, const Tensor& labels,
                                                      std::optional<double> alpha, const LossShape& shape);

// The gradient to the logits, given that to the reduced loss.
Tensor sigmoid_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                             std::optional<double> alpha, int64_t reduction, const LossShape& shape);

}  // namespace detkit
