// The losses on sigmoids as operators on CUDA tensors: an operation brings its shape, as a function of the type that is
// computed in (shape(float{}) or shape(double{})).
//
// The sum and its gradient are two passes, which move three tensors of the size of the logits. One pass for both would
// have to be followed by a multiplication with the gradient that comes in, and move four.
#pragma once

#include <optional>
#include <tuple>

#include "../common/loss.h"
#include "sigmoid_loss.cuh"

namespace detkit {

template <class Scalar>
LossRows<Scalar> loss_rows(const LossInputs& inputs) {
  return {inputs.logits.const_data_ptr<Scalar>(), inputs.labels.const_data_ptr<int64_t>(), inputs.labels.numel(),
          inputs.classes()};
}

template <class T, class Shape, class Scalar>
Tensor summed_loss(const LossInputs& inputs, const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights,
                   Stream stream) {
  Tensor partial = torch::stable::new_empty(inputs.logits, {loss_tiles(rows)}, ScalarType::Double);
  Tensor out = inputs.new_scalar(accumulate_type(inputs.logits.scalar_type()));
  sum_loss(shape, rows, weights, partial.mutable_data_ptr<double>(), out.mutable_data_ptr<T>(), stream);
  return out;
}

// The loss, reduced as the schema says (`op` names it in errors).
template <class ShapeFor>
Tensor sigmoid_loss(const char* op, const Tensor& logits, const Tensor& labels, std::optional<double> alpha,
                    int64_t reduction, const ShapeFor& shape_for) {
  const OnDevice device(logits.get_device_index());
  const LossInputs inputs(op, logits, labels);
  const auto dtype = logits.scalar_type();
  return dispatch_floating(dtype, [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    const auto rows = loss_rows<Scalar>(inputs);
    const auto weights = weights_of<T>(alpha);
    const auto shape = shape_for(T{});
    if (reduction == kSum) return summed_loss(inputs, shape, rows, weights, device.stream());
    if (reduction == kAnchor) {
      Tensor out = inputs.new_per_row(accumulate_type(dtype));
      sum_loss_of_rows(shape, rows, weights, out.mutable_data_ptr<T>(), device.stream());
      return out;
    }
    Tensor out = torch::stable::empty_like(inputs.logits);
    write_loss(shape, rows, weights, out.mutable_data_ptr<Scalar>(), device.stream());
    return out;
  });
}

// The gradient to the logits, given that to the reduced loss; none given: 1 to the sum.
template <class ShapeFor>
Tensor sigmoid_loss_backward(const std::optional<Tensor>& grad, const Tensor& logits, const Tensor& labels,
                             std::optional<double> alpha, int64_t reduction, const ShapeFor& shape_for) {
  const OnDevice device(logits.get_device_index());
  const LossInputs inputs("the gradient of a loss", logits, labels);
  const std::optional<Tensor> g = grad ? std::optional<Tensor>(inputs.incoming(*grad, reduction)) : std::nullopt;
  return dispatch_floating(logits.scalar_type(), [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    Tensor out = torch::stable::empty_like(inputs.logits);
    Scalar* const slopes = out.mutable_data_ptr<Scalar>();
    const auto shape = shape_for(T{});
    const auto rows = loss_rows<Scalar>(inputs);
    const auto weights = weights_of<T>(alpha);
    if (reduction == kSum) {
      const T* const incoming = g ? g->const_data_ptr<T>() : nullptr;
      write_loss_gradient<GradientOfSum<T, Scalar>>(shape, rows, weights, incoming, slopes, device.stream());
    } else if (reduction == kAnchor) {
      write_loss_gradient<GradientOfRows<T, Scalar>>(shape, rows, weights, g->const_data_ptr<T>(), slopes,
                                                     device.stream());
    } else {
      write_loss_gradient<GradientOfEach<T, Scalar>>(shape, rows, weights, g->const_data_ptr<Scalar>(), slopes,
                                                     device.stream());
    }
    return out;
  });
}

// The sum and its gradient to the logits. On a device nothing of detkit asks for both at once; the operator is there
// for whoever calls it.
template <class ShapeFor>
std::tuple<Tensor, Tensor> sigmoid_loss_with_gradient(const char* op, const Tensor& logits, const Tensor& labels,
                                                      std::optional<double> alpha, const ShapeFor& shape_for) {
  return {sigmoid_loss(op, logits, labels, alpha, kSum, shape_for),
          sigmoid_loss_backward(std::nullopt, logits, labels, alpha, kSum, shape_for)};
}

}  // namespace detkit
