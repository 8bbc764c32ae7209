// What the losses on sigmoids share: each is a sum over classes of weight * f(z), where f is a shape of math/, z the
// logit x at the labelled class and -x at the others, and the weight is that of either kind.
//
// An operation brings the loops of its shape's value and derivative; sigmoid_loss.cpp feeds them.
#pragma once

#include <functional>
#include <optional>
#include <type_traits>

#include "../common/tensor.h"
#include "vectorize.h"

namespace detkit {

// The loops of one shape: each(n, z, weight, out) writes weight * f(z), total(n, z, weight) sums it. Sums are taken in a
// fixed order of 16 interleaved parts, which every width of vector can keep.
template <class T>
struct Loop {
  std::function<void(int64_t count, const T* z, const T* weight, T* out)> each;
  std::function<double(int64_t count, const T* z, const T* weight)> total;
};

// The loops for both types that are computed in.
struct Loops {
  Loop<float> in_float;
  Loop<double> in_double;

  const Loop<float>& of(float) const { return in_float; }
  const Loop<double>& of(double) const { return in_double; }
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

template <class T, class F>
Loop<T> loop_over(F f) {
  const auto each = [=](int64_t count, const T* z, const T* weight, T* __restrict out) {
    vectorized<T>([&]() DETKIT_INLINE {
      for (int64_t i = 0; i < count; ++i) out[i] = weight[i] * f(z[i]);
    });
  };
  const auto total = [=](int64_t count, const T* z, const T* weight) {
    double sum = 0;
    vectorized<T>([&]() DETKIT_INLINE {
      constexpr int64_t kLanes = 16;
      T lanes[kLanes] = {};
      const int64_t even = count - count % kLanes;
      for (int64_t i = 0; i < even; i += kLanes)
        for (int64_t l = 0; l < kLanes; ++l) lanes[l] += weight[i + l] * f(z[i + l]);
      for (int64_t i = even; i < count; ++i) lanes[i - even] += weight[i] * f(z[i]);
      for (const T lane : lanes) sum += lane;
    });
    return sum;
  };
  return {each, total};
}

template <class T, class Shape>
Loop<T> value_loop(Shape shape) {
  return loop_over<T>([=](T z) DETKIT_INLINE { return shape.value(z); });
}

template <class T, class Shape>
Loop<T> derivative_loop(Shape shape) {
  return loop_over<T>([=](T z) DETKIT_INLINE { return shape.derivative(z); });
}

// The loss, reduced as the schema says (`op` names it in errors), and the gradient to the logits.
Tensor sigmoid_loss(const char* op, const Tensor& logits, const Tensor& labels, std::optional<double> alpha,
                    int64_t reduction, const Loops& value);

Tensor sigmoid_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                             std::optional<double> alpha, int64_t reduction, const Loops& derivative);

}  // namespace detkit
