#include "../math/focal.h"
#include "sigmoid_loss.h"

namespace detkit {
namespace {

auto shape(double gamma) {
  return [=](auto zero) {
    using T = decltype(zero);
    return FocalLoss<T, PowerAtRunTime<T>>{{static_cast<T>(gamma)}};
  };
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
          int64_t reduction) {
  return sigmoid_loss("sigmoid_focal_loss", logits, labels, alpha, reduction, shape(gamma));
}

std::tuple<Tensor, Tensor> sigmoid_focal_loss_with_gradient(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma) {
  return sigmoid_loss_with_gradient("sigmoid_focal_loss", logits, labels, alpha, shape(gamma));
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
                   int64_t reduction) {
  return sigmoid_loss_backward(grad, logits, labels, alpha, reduction, shape(gamma));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("_sigmoid_focal_loss_with_gradient", TORCH_BOX(&sigmoid_focal_loss_with_gradient));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace detkit
