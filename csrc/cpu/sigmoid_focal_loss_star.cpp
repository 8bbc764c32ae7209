#include "../math/focal_star.h"

#include "sigmoid_loss.h"

namespace detkit {
namespace {

template <class T>
FocalStarLoss<T> shape(double gamma, double beta) {
  return {static_cast<T>(gamma), static_cast<T>(beta)};
}

Tensor sigmoid_focal_loss_star(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
                               double beta, int64_t reduction) {
  return sigmoid_loss("sigmoid_focal_loss_star", logits, labels, alpha, reduction,
                      {value_loop<float>(shape<float>(gamma, beta)), value_loop<double>(shape<double>(gamma, beta))});
}

Tensor sigmoid_focal_loss_star_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                        std::optional<double> alpha, double gamma, double beta, int64_t reduction) {
  return sigmoid_loss_backward(
      grad, logits, labels, alpha, reduction,
      {derivative_loop<float>(shape<float>(gamma, beta)), derivative_loop<double>(shape<double>(gamma, beta))});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) {
  m.impl("sigmoid_focal_loss_star", TORCH_BOX(&sigmoid_focal_loss_star));
  m.impl("_sigmoid_focal_loss_star_backward", TORCH_BOX(&sigmoid_focal_loss_star_backward));
}

}  // namespace detkit
