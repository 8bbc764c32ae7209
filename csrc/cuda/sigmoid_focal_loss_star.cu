#include "../math/focal_star.h"
#include "sigmoid_loss.h"

namespace detkit {
namespace {

auto shape(double gamma, double beta) {
  return [=](auto zero) {
    using T = decltype(zero);
    return FocalStarLoss<T>{static_cast<T>(gamma), static_cast<T>(beta)};
  };
}

Tensor sigmoid_focal_loss_star(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
                               double beta, int64_t reduction) {
  return sigmoid_loss("sigmoid_focal_loss_star", logits, labels, alpha, reduction, shape(gamma, beta));
}

std::tuple<Tensor, Tensor> sigmoid_focal_loss_star_with_gradient(const Tensor& logits, const Tensor& labels,
                                                                 std::optional<double> alpha, double gamma,
                                                                 double beta) {
  return sigmoid_loss_with_gradient("sigmoid_focal_loss_star", logits, labels, alpha, shape(gamma, beta));
}

Tensor sigmoid_focal_loss_star_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                        std::optional<double> alpha, double gamma, double beta, int64_t reduction) {
  return sigmoid_loss_backward(grad, logits, labels, alpha, reduction, shape(gamma, beta));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) {
  m.impl("sigmoid_focal_loss_star", TORCH_BOX(&sigmoid_focal_loss_star));
  m.impl("_sigmoid_focal_loss_star_with_gradient", TORCH_BOX(&sigmoid_focal_loss_star_with_gradient));
  m.impl("_sigmoid_focal_loss_star_backward", TORCH_BOX(&sigmoid_focal_loss_star_backward));
}

}  // namespace detkit
