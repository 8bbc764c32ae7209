#include "../math/focal.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/tensor.h"

namespace detkit {
namespace {

using torch::stable::parallel_for;

enum Reduction : int64_t { kNone = 0, kAnchor = 1, kSum = 2 };

constexpr int64_t kGrain = 64;  // rows that are worth a thread
constexpr int64_t kBlock = 256;  // rows that are summed together, whatever the number of threads
constexpr int64_t kIgnored = -1;

template <class T>
Weighted<FocalShape<T>, T> focal_loss(std::optional<double> alpha, double gamma) {
  const double on = alpha ? *alpha : 1, off = alpha ? 1 - *alpha : 1;
  return {{static_cast<T>(gamma)}, static_cast<T>(on), static_cast<T>(off)};
}

int64_t num_classes_of(const Tensor& logits) { return logits.size(logits.dim() - 1); }

void check_labels(const int64_t* labels, int64_t rows, int64_t classes) {
  const auto* wrong = std::find_if(labels, labels + rows, [=](int64_t l) { return l < kIgnored || l > classes; });
  STD_TORCH_CHECK(wrong == labels + rows, "sigmoid_focal_loss: the label ", *wrong, " is not in -1..", classes,
                  " (0..K-1 class, K = ", classes, " background, -1 ignored)");
}

template <class T, class Scalar, class Loss>
T row_sum(const Loss& loss, const Scalar* row, int64_t label, int64_t classes) {
  T sum = 0;
  if (label == kIgnored) return sum;
  for (int64_t k = 0; k < classes; ++k) sum += loss.value(static_cast<T>(row[k]), k == label);
  return sum;
}

// Blocks of fixed size are summed in order, then the blocks: the number of threads does not show in the result.
template <class T, class Scalar, class Loss>
T total(const Loss& loss, const Scalar* logits, const int64_t* labels, int64_t rows, int64_t classes) {
  std::vector<double> partial((rows + kBlock - 1) / kBlock, 0.0);
  parallel_for(0, static_cast<int64_t>(partial.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t stop = std::min(rows, (block + 1) * kBlock);
      for (int64_t r = block * kBlock; r < stop; ++r)
        partial[block] += row_sum<T>(loss, logits + r * classes, labels[r], classes);
    }
  });
  double sum = 0;
  for (const double part : partial) sum += part;
  return static_cast<T>(sum);
}

template <class T, class Scalar, class Loss>
void rows_into(const Loss& loss, const Scalar* logits, const int64_t* labels, int64_t rows, int64_t classes, T* out) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) out[r] = row_sum<T>(loss, logits + r * classes, labels[r], classes);
  });
}

template <class T, class Scalar, class Loss>
void elements_into(const Loss& loss, const Scalar* logits, const int64_t* labels, int64_t rows, int64_t classes,
                   Scalar* out) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t k = 0, i = r * classes; k < classes; ++k, ++i)
        out[i] = labels[r] == kIgnored ? Scalar(0.0f) : Scalar(loss.value(static_cast<T>(logits[i]), k == labels[r]));
  });
}

Tensor sigmoid_focal_loss(const Tensor& logits, const Tensor& labels, std::optional<double> alpha, double gamma,
                          int64_t reduction) {
  const auto dtype = logits.scalar_type();
  const Tensor x = torch::stable::contiguous(logits), y = contiguous_as(labels, ScalarType::Long);
  const int64_t rows = y.numel(), classes = num_classes_of(x);
  const int64_t* label = y.const_data_ptr<int64_t>();
  check_labels(label, rows, classes);
  return dispatch_floating(dtype, [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    const auto loss = focal_loss<T>(alpha, gamma);
    const Scalar* logit = x.const_data_ptr<Scalar>();
    if (reduction == kNone) {
      Tensor out = torch::stable::new_empty(x, x.sizes());
      elements_into<T>(loss, logit, label, rows, classes, out.mutable_data_ptr<Scalar>());
      return out;
    }
    const auto shape = reduction == kAnchor ? y.sizes() : y.sizes().slice(0, 0);
    Tensor out = torch::stable::new_empty(x, shape, accumulate_type(dtype));
    T* result = out.mutable_data_ptr<T>();
    if (reduction == kAnchor) {
      rows_into<T>(loss, logit, label, rows, classes, result);
    } else {
      *result = total<T>(loss, logit, label, rows, classes);
    }
    return out;
  });
}

// The gradient of the loss arrives per element, per row or as one number; `grad_at(row, element)` reads it.
template <class T, class Scalar, class Loss, class GradAt>
void gradient_into(const Loss& loss, const Scalar* logits, const int64_t* labels, int64_t rows, int64_t classes,
                   GradAt grad_at, Scalar* out) {
  parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (labels[r] == kIgnored) {
        std::fill_n(out + r * classes, classes, Scalar(0.0f));
        continue;
      }
      for (int64_t k = 0, i = r * classes; k < classes; ++k, ++i)
        out[i] = Scalar(loss.derivative(static_cast<T>(logits[i]), k == labels[r]) * grad_at(r, i));
    }
  });
}

Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                   std::optional<double> alpha, double gamma, int64_t reduction) {
  const auto dtype = logits.scalar_type();
  const Tensor x = torch::stable::contiguous(logits), y = contiguous_as(labels, ScalarType::Long);
  const Tensor g = contiguous_as(grad, reduction == kNone ? dtype : accumulate_type(dtype));
  const int64_t rows = y.numel(), classes = num_classes_of(x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  dispatch_floating(dtype, [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    const auto run = [&](auto grad_at) {
      gradient_into<T>(focal_loss<T>(alpha, gamma), x.const_data_ptr<Scalar>(), y.const_data_ptr<int64_t>(), rows,
                       classes, grad_at, out.mutable_data_ptr<Scalar>());
    };
    if (reduction == kNone) {
      run([p = g.const_data_ptr<Scalar>()](int64_t, int64_t i) { return static_cast<T>(p[i]); });
    } else if (reduction == kAnchor) {
      run([p = g.const_data_ptr<T>()](int64_t r, int64_t) { return p[r]; });
    } else {
      run([value = *g.const_data_ptr<T>()](int64_t, int64_t) { return value; });
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("_sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
}

}  // namespace detkit
