#include "../math/focal.h"

#include "sigmoid_loss.h"

namespace detkit {
namespace {

template <class T>
Loop<T> value(double gamma) {
  return with_focal_loss<T>(gamma, [](auto shape) { return value_loop<T>(shape); });
}

template <class T>
Loop<T> derivative(double gamma) {
  return with_focal_loss<T>(gamma, [](auto shape) { return derivative_loop<T>(shape); });
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
                          int64_t reduction) {
  return sigmoid_loss("sigmoid_focal_loss", logits, labels, alpha, reduction,
                      {value<float>(gamma), value<double>(gamma)});
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                   std::optional<double> alpha, double gamma, int64_t reduction) {
  return sigmoid_loss_backward(grad, logits, labels, alpha, reduction,
                               {derivative<float>(gamma), derivative<double>(gamma)});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace detkit
