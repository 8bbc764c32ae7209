#include "../math/hinge.h"

#include "sigmoid_loss.h"

namespace detkit {
namespace {

template <class T>
HingeLoss<T> shape(double margin) {
  return {static_cast<T>(margin)};
}

Tensor sigmoid_hinge_loss(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double margin,
                          int64_t reduction) {
  return sigmoid_loss("sigmoid_hinge_loss", logits, labels, alpha, reduction,
                      {value_loop<float>(shape<float>(margin)), value_loop<double>(shape<double>(margin))});
}

Tensor sigmoid_hinge_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                   std::optional<double> alpha, double margin, int64_t reduction) {
  return sigmoid_loss_backward(
      grad, logits, labels, alpha, reduction,
      {derivative_loop<float>(shape<float>(margin)), derivative_loop<double>(shape<double>(margin))});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) {
  m.impl("sigmoid_hinge_loss", TORCH_BOX(&sigmoid_hinge_loss));
  m.impl("_sigmoid_hinge_loss_backward", TORCH_BOX(&sigmoid_hinge_loss_backward));
}

}  // namespace detkit
