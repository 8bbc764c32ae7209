// What a loss on sigmoids means on every device: how it is reduced, weighed, and what its inputs must be.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace detkit {

enum Reduction : int64_t { kNone = 0, kAnchor = 1, kSum = 2 };

// Tensors of a loss, contiguous, the labels as int64. The Python face has checked their shapes; a graph that calls the
// operator itself has not.
struct LossInputs {
  Tensor logits, labels;

  // `op` names the operation in errors.
  LossInputs(const char* op, const Tensor& logits_, const Tensor& labels_)
      : logits(torch::stable::contiguous(logits_)), labels(contiguous_as(labels_, ScalarType::Long)) {
    check_same_device(op, logits, labels);
    STD_TORCH_CHECK(labels.numel() * classes() == logits.numel(), op,
                    ": labels must have the shape of the logits' rows");
  }

  int64_t classes() const { return logits.size(logits.dim() - 1); }

  Tensor new_scalar(ScalarType dtype) const {
    return torch::stable::new_empty(logits, labels.sizes().slice(0, 0), dtype);
  }

  Tensor new_per_row(ScalarType dtype) const { return torch::stable::new_empty(logits, labels.sizes(), dtype); }

  // The gradient that comes to the reduced loss, contiguous: one number, or one per row, or one per logit.
  Tensor incoming(const Tensor& grad, int64_t reduction) const {
    const auto dtype = logits.scalar_type();
    check_same_device("the gradient of a loss", logits, grad);
    Tensor g = contiguous_as(grad, reduction == kNone ? dtype : accumulate_type(dtype));
    const int64_t expected = reduction == kNone ? logits.numel() : reduction == kAnchor ? labels.numel() : 1;
    STD_TORCH_CHECK(g.numel() == expected, "the gradient of a loss must have the shape of the loss");
    return g;
  }
};

}  // namespace detkit
