#include "../math/focal.h"
#include "sigmoid_loss.h"

namespace detkit {
namespace {

// Calls f with what makes the shape: the exponent of the paper, which is the default, has kernels of its own.
template <class F>
auto with_shape(double gamma, const F& f) {
  if (gamma == 2) return f([](auto zero) { return FocalLoss<decltype(zero), PowerTwo<decltype(zero)>>{}; });
  return f([=](auto zero) {
    using T = decltype(zero);
    return FocalLoss<T, PowerAtRunTime<T>>{{static_cast<T>(gamma)}};
  });
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
                          int64_t reduction) {
  return with_shape(gamma, [&](const auto& shape) {
    return sigmoid_loss("sigmoid_focal_loss", logits, labels, alpha, reduction, shape);
  });
}

std::tuple<Tensor, Tensor> sigmoid_focal_loss_with_gradient(const Tensor& logits, const Tensor& labels,
                                                            std::optional<double> alpha, double gamma) {
  return with_shape(gamma, [&](const auto& shape) {
    return sigmoid_loss_with_gradient("sigmoid_focal_loss", logits, labels, alpha, shape);
  });
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                   std::optional<double> alpha, double gamma, int64_t reduction) {
  return with_shape(
      gamma, [&](const auto& shape) { return sigmoid_loss_backward(grad, logits, labels, alpha, reduction, shape); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("_sigmoid_focal_loss_with_gradient", TORCH_BOX(&sigmoid_focal_loss_with_gradient));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace detkit
