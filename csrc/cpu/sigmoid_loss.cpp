// Feeds the loop of a loss: a chunk of whole rows (or a part of one long row) is loaded with its signs and weights set,
// the loop runs over it as over a flat array, and what comes out is summed or written. Neither the labels nor the
// number of classes is seen by the loop that costs time.
#include "sigmoid_loss.h"

#include <algorithm>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace detkit {
namespace {

// Logits [count, classes] and their labels, contiguous.
template <class Scalar>
struct Rows {
  const Scalar* logits;
  const int64_t* labels;
  int64_t count, classes;
};

// The classes [first_class, first_class + width) of some rows; several rows only where they are whole.
struct Part {
  int64_t first_row, rows, first_class, width;

  int64_t count() const { return rows * width; }
};

// The elements that a loop runs over; small enough for the first-level cache.
template <class T>
class Chunk {
 public:
  static constexpr int64_t kCapacity = 1024;

  explicit Chunk(Weights<T> weights) : weights_(weights) { std::fill_n(weight_, kCapacity, weights.off); }

  const T* z() const { return z_; }
  const T* weight() const { return weight_; }
  T* out() { return out_; }

  // Sets z and the weights. Most rows are background, so only what differs from that is set, and reset by `clear`.
  template <class Scalar>
  void load(const Rows<Scalar>& rows, const Part& part) {
    const Scalar* const from = rows.logits + part.first_row * rows.classes + part.first_class;
    vectorized<T>([&, count = part.count()]() DETKIT_INLINE {
      for (int64_t i = 0; i < count; ++i) z_[i] = -static_cast<T>(from[i]);
    });
    prefetch(from + part.count(), part.count());  // the next part: it arrives while the loop computes
    for_each_label(rows, part, [&](int64_t start, int64_t k) {
      if (k == kIgnored) {  // whatever the logits hold
        std::fill_n(z_ + start, part.width, T(0));
        std::fill_n(weight_ + start, part.width, T(0));
      } else {
        z_[start + k] = -z_[start + k];
        weight_[start + k] = weights_.on;
      }
    });
  }

  // Turns the sign of the values at the labelled classes: dz/dx is 1 there, and -1 at the others.
  template <class Scalar>
  void turn_labelled(const Rows<Scalar>& rows, const Part& part, T* values) const {
    for_each_label(rows, part, [&](int64_t start, int64_t k) {
      if (k != kIgnored) values[start + k] = -values[start + k];
    });
  }

  // Sets the values of ignored rows to 0, whatever they were multiplied by.
  template <class Scalar>
  void zero_ignored(const Rows<Scalar>& rows, const Part& part, T* values) const {
    for_each_label(rows, part, [&](int64_t start, int64_t k) {
      if (k == kIgnored) std::fill_n(values + start, part.width, T(0));
    });
  }

  template <class Scalar>
  void clear(const Rows<Scalar>& rows, const Part& part) {
    for_each_label(rows, part, [&](int64_t start, int64_t k) {
      std::fill_n(weight_ + start + (k == kIgnored ? 0 : k), k == kIgnored ? part.width : 1, weights_.off);
    });
  }

 private:
  template <class Scalar>
  static void prefetch(const Scalar* first, int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(Scalar);
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(first + i);
  }

  // Calls f(index of the row's first element, label) for the rows that are not all background; the label counts from
  // the part's first class.
  template <class Scalar, class F>
  static void for_each_label(const Rows<Scalar>& rows, const Part& part, const F& f) {
    const int64_t* const labels = rows.labels + part.first_row;
    for (int64_t r = 0; r < part.rows; ++r) {
      const int64_t k = labels[r] - part.first_class;
      if (labels[r] == kIgnored) {
        f(r * part.width, kIgnored);
      } else if (k >= 0 && k < part.width) {
        f(r * part.width, k);
      }
    }
  }

  Weights<T> weights_;
  alignas(64) T z_[kCapacity], weight_[kCapacity], out_[kCapacity];
};

// Rows are taken in blocks. How many make a block depends on the number of classes only: so do sums over blocks, then.
template <class T>
struct Blocks {
  int64_t rows_each, count;

  Blocks(int64_t rows, int64_t classes)
      : rows_each(std::max<int64_t>(1, Chunk<T>::kCapacity / std::max<int64_t>(1, classes))),
        count((rows + rows_each - 1) / rows_each) {}
};

// Numbers below the normal ones become 0 while this lives, on this thread. Confident elements have many of
// them, powers of a small 1 - p_t, and each costs an x86 processor as much as a hundred others.
class FlushToZero {
 public:
  FlushToZero(const FlushToZero&) = delete;
#if defined(__x86_64__)
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kResults | kOperands); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kResults = 0x8000, kOperands = 0x0040;
  unsigned before_;
#else
  FlushToZero() {}
#endif
};

// Calls f(index of the block, part, loaded chunk) for the parts of all blocks, on all threads, the parts of a block in
// order. f must not throw.
template <class T, class Scalar, class F>
void for_each_part(const Rows<Scalar>& rows, Weights<T> weights, const F& f) {
  constexpr int64_t kGrain = 32;  // blocks that are worth a thread
  const Blocks<T> blocks(rows.count, rows.classes);
  const int64_t width = std::min(rows.classes, Chunk<T>::kCapacity);
  torch::stable::parallel_for(0, blocks.count, kGrain, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const FlushToZero mode;
    Chunk<T> chunk(weights);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * blocks.rows_each, count = std::min(blocks.rows_each, rows.count - first);
      for (int64_t k = 0; k < rows.classes; k += width) {
        const Part part{first, count, k, std::min(width, rows.classes - k)};
        chunk.load(rows, part);
        f(b, part, chunk);
        chunk.clear(rows, part);
      }
    }
  });
}

// Calls add(part, loaded chunk) for all parts and returns the sum of what it returns, in the order of the blocks.
template <class T, class Scalar, class Add>
T sum_over_parts(const Rows<Scalar>& rows, Weights<T> weights, const Add& add) {
  std::vector<double> partial(Blocks<T>(rows.count, rows.classes).count, 0.0);
  for_each_part(rows, weights,
                [&](int64_t block, const Part& part, Chunk<T>& chunk) { partial[block] += add(part, chunk); });
  double total = 0;
  for (const double part : partial) total += part;
  return static_cast<T>(total);
}

template <class T, class Scalar>
T sum_of_all(const Loops<T>& loops, const Rows<Scalar>& rows, Weights<T> weights) {
  return sum_over_parts(rows, weights, [&](const Part& part, const Chunk<T>& chunk) {
    return loops.total(part.count(), chunk.z(), chunk.weight());
  });
}

template <class T, class Scalar>
void sum_of_rows(const Loops<T>& loops, const Rows<Scalar>& rows, Weights<T> weights, T* out) {
  std::fill_n(out, rows.count, T(0));
  for_each_part(rows, weights, [&](int64_t, const Part& part, const Chunk<T>& chunk) {
    for (int64_t r = 0, i = 0; r < part.rows; ++r, i += part.width)
      out[part.first_row + r] += static_cast<T>(loops.total(part.width, chunk.z() + i, chunk.weight() + i));
  });
}

// Lets `compute(values)` fill a part and writes it where it belongs.
template <class T, class Scalar, class Compute>
void write_part(const Rows<Scalar>& rows, const Part& part, Chunk<T>& chunk, Scalar* out, const Compute& compute) {
  Scalar* const to = out + part.first_row * rows.classes + part.first_class;
  if constexpr (std::is_same_v<T, Scalar>) {
    compute(to);
  } else {
    compute(chunk.out());
    vectorized<T>([&, count = part.count()]() DETKIT_INLINE {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Scalar>(chunk.out()[i]);
    });
  }
}

template <class T, class Scalar>
void each(const Loops<T>& loops, const Rows<Scalar>& rows, Weights<T> weights, Scalar* out) {
  for_each_part(rows, weights, [&](int64_t, const Part& part, Chunk<T>& chunk) {
    write_part(rows, part, chunk, out,
               [&](T* values) { loops.value(part.count(), chunk.z(), chunk.weight(), values); });
  });
}

template <class T, class Scalar>
T sum_with_gradient(const Loops<T>& loops, const Rows<Scalar>& rows, Weights<T> weights, Scalar* out) {
  return sum_over_parts(rows, weights, [&](const Part& part, Chunk<T>& chunk) {
    double sum = 0;
    write_part(rows, part, chunk, out, [&](T* values) {
      sum = loops.total_with_derivative(part.count(), chunk.z(), chunk.weight(), values);
      chunk.turn_labelled(rows, part, values);
    });
    return sum;
  });
}

// The gradient that comes in is one number, or one per row, or one per element.
template <class T, class Scalar>
void gradient(const Loops<T>& loops, const Rows<Scalar>& rows, Weights<T> weights, const Tensor& grad,
              int64_t reduction, Scalar* out) {
  const T scale = reduction == kSum ? *grad.const_data_ptr<T>() : T(1);
  const T* const of_row = reduction == kAnchor ? grad.const_data_ptr<T>() : nullptr;
  const Scalar* const of_element = reduction == kNone ? grad.const_data_ptr<Scalar>() : nullptr;
  const auto times_grad = [&](const Part& part, T* values) {
    for (int64_t r = part.first_row, i = 0; of_row && r < part.first_row + part.rows; ++r)
      for (const int64_t end = i + part.width; i < end; ++i) values[i] *= of_row[r];
    const int64_t first = part.first_row * rows.classes + part.first_class, count = of_element ? part.count() : 0;
    for (int64_t i = 0; i < count; ++i) values[i] *= static_cast<T>(of_element[first + i]);
  };
  const Weights<T> signed_weights{weights.on * scale, -weights.off * scale};  // dz/dx is -1 beside the label
  for_each_part(rows, signed_weights, [&](int64_t, const Part& part, Chunk<T>& chunk) {
    write_part(rows, part, chunk, out, [&](T* values) {
      loops.derivative(part.count(), chunk.z(), chunk.weight(), values);
      times_grad(part, values);
      chunk.zero_ignored(rows, part, values);
    });
  });
}

void check_labels(const char* op, const Tensor& labels, int64_t classes) {
  const int64_t* const first = labels.const_data_ptr<int64_t>();
  const int64_t* const last = first + labels.numel();
  const auto* wrong = std::find_if(first, last, [=](int64_t l) { return l < kIgnored || l > classes; });
  STD_TORCH_CHECK(wrong == last, op, ": the label ", *wrong, " is not in -1..", classes,
                  " (0..K-1 class, K = ", classes, " background, -1 ignored)");
}

template <class Scalar>
Rows<Scalar> rows_of(const LossInputs& inputs) {
  return {inputs.logits.const_data_ptr<Scalar>(), inputs.labels.const_data_ptr<int64_t>(), inputs.labels.numel(),
          inputs.classes()};
}

}  // namespace

Tensor sigmoid_loss(const char* op, const Tensor& logits, const Tensor& labels, std::optional<double> alpha,
                    int64_t reduction, const LossShape& shape) {
  const auto dtype = logits.scalar_type();
  const LossInputs inputs(op, logits, labels);
  check_labels(op, inputs.labels, inputs.classes());
  return dispatch_floating(dtype, [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    const auto rows = rows_of<Scalar>(inputs);
    const auto weights = weights_of<T>(alpha);
    const auto& loops = shape.loops(T{});
    if (reduction == kNone) {
      Tensor out = torch::stable::empty_like(inputs.logits);
      each(loops, rows, weights, out.mutable_data_ptr<Scalar>());
      return out;
    }
    Tensor out =
        reduction == kAnchor ? inputs.new_per_row(accumulate_type(dtype)) : inputs.new_scalar(accumulate_type(dtype));
    T* const result = out.mutable_data_ptr<T>();
    if (reduction == kAnchor) {
      sum_of_rows(loops, rows, weights, result);
    } else {
      *result = sum_of_all(loops, rows, weights);
    }
    return out;
  });
}

std::tuple<Tensor, Tensor> sigmoid_loss_with_gradient(const char* op, const Tensor& logits, const Tensor& labels,
                                                      std::optional<double> alpha, const LossShape& shape) {
  const auto dtype = logits.scalar_type();
  const LossInputs inputs(op, logits, labels);
  check_labels(op, inputs.labels, inputs.classes());
  return dispatch_floating(dtype, [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    Tensor loss = inputs.new_scalar(accumulate_type(dtype));
    Tensor gradient = torch::stable::empty_like(inputs.logits);
    *loss.mutable_data_ptr<T>() = sum_with_gradient(shape.loops(T{}), rows_of<Scalar>(inputs), weights_of<T>(alpha),
                                                    gradient.mutable_data_ptr<Scalar>());
    return std::make_tuple(loss, gradient);
  });
}

Tensor sigmoid_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                             std::optional<double> alpha, int64_t reduction, const LossShape& shape) {
  const auto dtype = logits.scalar_type();
  const LossInputs inputs("the gradient of a loss", logits, labels);
  const Tensor g = inputs.incoming(grad, reduction);
  return dispatch_floating(dtype, [&](auto zero) {
    using Scalar = decltype(zero);
    using T = typename Accumulate<Scalar>::type;
    Tensor out = torch::stable::empty_like(inputs.logits);
    gradient(shape.loops(T{}), rows_of<Scalar>(inputs), weights_of<T>(alpha), g, reduction,
             out.mutable_data_ptr<Scalar>());
    return out;
  });
}

}  // namespace detkit
