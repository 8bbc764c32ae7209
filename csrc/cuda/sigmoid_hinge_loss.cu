#include "../math/hinge.h"
#include "sigmoid_loss.h"

namespace detkit {
namespace {

auto shape(double margin) {
  return [=](auto zero) {
    using T = decltype(zero);
    return HingeLoss<T>{static_cast<T>(margin)};
  };
}

Tensor sigmoid_hinge_loss(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double margin,
                          int64_t reduction) {
  return sigmoid_loss("sigmoid_hinge_loss", logits, labels, alpha, reduction, shape(margin));
}

std::tuple<Tensor, Tensor> sigmoid_hinge_loss_with_gradient(const Tensor& logits, const Tensor& labels,
                                                            std::optional<double> alpha, double margin) {
  return sigmoid_loss_with_gradient("sigmoid_hinge_loss", logits, labels, alpha, shape(margin));
}

Tensor sigmoid_hinge_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                   std::optional<double> alpha, double margin, int64_t reduction) {
  return sigmoid_loss_backward(grad, logits, labels, alpha, reduction, shape(margin));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) {
  m.impl("sigmoid_hinge_loss", TORCH_BOX(&sigmoid_hinge_loss));
  m.impl("_sigmoid_hinge_loss_with_gradient", TORCH_BOX(&sigmoid_hinge_loss_with_gradient));
  m.impl("_sigmoid_hinge_loss_backward", TORCH_BOX(&sigmoid_hinge_loss_backward));
}

}  // namespace detkit
