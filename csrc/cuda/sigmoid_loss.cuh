// The kernels of the losses on sigmoids, without torch: each logit is read in vectors of 16 bytes, and is one call of a
// shape of math/. No one-hot tensor exists.
//
// A block takes a tile of consecutive logits, whatever the rows; each thread has several vectors of it in flight.
// Nearly all vectors are plain: background only, so that nothing in them depends on labels. The arithmetic is as dear
// as the memory (csrc/README.md), hence this; the other vectors are taken afterwards, logit by logit. Sums go over tiles of
// fixed size in fixed order, in double above a thread: they depend on nothing but the input. The sums of rows alone are
// taken by groups of lanes, a group to a row.
#pragma once

#include <cstdint>

#include "../math/labels.h"
#include "warp.cuh"

namespace detkit {

constexpr int kLossThreads = 256;
constexpr int kRowLoads = 4;    // of a lane at once, in a sum over rows
constexpr int kLossBlocks = 4;  // of them, at least, have registers on a multiprocessor: 64 each

// Logits [rows, classes] and their labels, contiguous.
template <class Scalar>
struct LossRows {
  const Scalar* logits;
  const int64_t* labels;
  int64_t rows, classes;

  __host__ __device__ int64_t count() const { return rows * classes; }
};

template <class Scalar>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(Scalar);
  Scalar at[kCount];
};

// Vectors that a thread loads before it computes: 64 bytes in flight, or as many logits as there are registers for.
template <class Scalar>
constexpr int kLossVectors = Vector<Scalar>::kCount > 4 ? 2 : 4;

template <class Scalar>
constexpr int64_t kLossTile = int64_t{kLossThreads} * kLossVectors<Scalar> * Vector<Scalar>::kCount;

// Division by a number that is known before: of less than 2^31, by a multiplication (Granlund and Montgomery 1994).
struct Divider {
  int64_t divisor;
  uint32_t factor = 0;
  int shift = 0;

  explicit Divider(int64_t divisor_) : divisor(divisor_) {
    if (divisor < 2 || divisor >= int64_t{1} << 31) return;
    while ((int64_t{1} << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + divisor - 1) / divisor);
  }

  __device__ int64_t operator()(int64_t number) const {
    if (divisor == 1) return number;
    if (factor == 0 || number >> 31) return number / divisor;
    return __umulhi(static_cast<uint32_t>(number), factor) >> (shift - 1);
  }
};

// One logit as a loss sees it; z is turned to the side of the label.
template <class T>
struct Term {
  T z;
  bool is_labelled, is_ignored;
  int64_t row, index;
};

// The logits of a tile. A thread has vectors at `first(i)`, i in 0..kVectors - 1.
template <class T, class Scalar>
class Tile {
 public:
  static constexpr int kCount = Vector<Scalar>::kCount, kVectors = kLossVectors<Scalar>;

  // Vectors are plain only where all memory is aligned. Loads what `beside` needs with them: its load(i, index of the
  // first logit, row); a vector of two rows is not plain where it differs by row.
  template <class Beside>
  __device__ Tile(const LossRows<Scalar>& rows, const Divider& by_classes, bool is_aligned, Beside& beside)
      : rows_(rows), total_(rows.count()), by_classes_(by_classes) {
    int64_t k[kVectors], label[kVectors], next_label[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {  // all loads before the first use
      const int64_t at = first(i);
      k[i] = -1;
      if (at < total_) others_ |= 1u << i;
      if (!is_aligned || at + kCount > total_) continue;
      loaded_[i] = *reinterpret_cast<const Vector<Scalar>*>(rows_.logits + at);
      const int64_t row = by_classes(at);
      k[i] = at - row * rows_.classes;
      label[i] = rows_.labels[row];
      next_label[i] = k[i] + kCount > rows_.classes ? rows_.labels[row + 1] : rows_.classes;
      beside.load(i, at, row);
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (k[i] < 0 || rows_.classes < kCount) continue;  // a vector has parts of two rows at most
      const int64_t end = rows_.classes - k[i];
      if (label[i] == kIgnored && (end >= kCount || next_label[i] == kIgnored)) {
        others_ &= ~(1u << i), ignored_ |= 1u << i;
        continue;
      }
      if (Beside::kDiffersByRow && end < kCount) continue;
      if (is_background(label[i], -k[i]) && is_background(next_label[i], end)) others_ &= ~(1u << i), plain_ |= 1u << i;
    }
  }

  // Calls use(index of the first logit, value of each) for the plain vectors, given value(i, j, background logit).
  template <class Value, class Use>
  __device__ void each_plain(const Value& value, const Use& use) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!(plain_ >> i & 1)) continue;
      T values[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = value(i, j, static_cast<T>(loaded_[i].at[j]));
      use(first(i), values);
    }
  }

  // Calls use(index of the first logit) for the vectors of ignored rows alone.
  template <class Use>
  __device__ void each_ignored(const Use& use) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (ignored_ >> i & 1) use(first(i));
  }

  // Calls use(term) for the logits of the other vectors. They are loaded again: whoever knows them by now is the cache.
  template <class Use>
  __device__ void each_other(const Use& use) const {
    for (unsigned others = others_; others; others &= others - 1) {
      const int64_t begin = first(__ffs(static_cast<int>(others)) - 1);
      const int64_t end = begin + kCount < total_ ? begin + kCount : total_;
      int64_t row = by_classes_(begin), k = begin - row * rows_.classes, label = rows_.labels[row];
      for (int64_t at = begin; at < end; ++at, ++k) {
        if (k == rows_.classes) k = 0, label = rows_.labels[++row];
        const T logit = static_cast<T>(rows_.logits[at]);
        use(Term<T>{k == label ? logit : -logit, k == label, label == kIgnored, row, at});
      }
    }
  }

 private:
  __device__ static int64_t first(int i) {
    const int64_t local = (int64_t{i} * kLossThreads + threadIdx.x) * kCount;
    return int64_t{blockIdx.x} * kLossTile<Scalar> + local;
  }

  // Whether a row, whose class 0 is at a place of the vector or before it, has only background in the vector.
  __device__ bool is_background(int64_t label, int64_t start) const {
    const bool is_in_vector = static_cast<uint64_t>(start + label) < kCount;
    return label != kIgnored && (!is_in_vector || label < 0 || label >= rows_.classes);
  }

  LossRows<Scalar> rows_;
  int64_t total_;
  Divider by_classes_;
  Vector<Scalar> loaded_[kVectors];
  unsigned plain_ = 0, ignored_ = 0, others_ = 0;  // a bit for each vector
};

// What kernels load beside the logits that need nothing more.
struct Nothing {
  static constexpr bool kDiffersByRow = false;
  __device__ void load(int, int64_t, int64_t) {}
};

// Writes the values of a vector to where its logits lie.
template <class Scalar, class T>
__device__ void write_vector(const T* values, Scalar* out) {
  Vector<Scalar> vector;
#pragma unroll
  for (int j = 0; j < Vector<Scalar>::kCount; ++j) vector.at[j] = static_cast<Scalar>(values[j]);
  *reinterpret_cast<Vector<Scalar>*>(out) = vector;
}

template <class Scalar>
__device__ void write_zeros(Scalar* out) {
  constexpr float kNothing[Vector<Scalar>::kCount] = {};
  write_vector(kNothing, out);
}

// Whatever an ignored logit holds, it counts for nothing.
template <class T, class Shape>
struct ValueOf {
  Shape shape;
  Weights<T> weights;

  __device__ T operator()(const Term<T>& term) const {
    if (term.is_ignored) return 0;
    return (term.is_labelled ? weights.on : weights.off) * shape.value(term.z);
  }
};

// The gradient that comes to the reduced loss, one for each reduction: a factor of all logits, and one of a logit,
// which for plain vectors is loaded with them.
template <class T, class Scalar>
struct GradientOfSum : Nothing {
  static constexpr int kBlocks = kLossBlocks;
  const T* grad;  // null: 1

  __host__ __device__ explicit GradientOfSum(const T* grad_) : grad(grad_) {}
  __device__ T of_all() const { return grad ? *grad : T(1); }
  __device__ T of_plain(int, int) const { return 1; }
  __device__ T of(const Term<T>&) const { return 1; }
};

template <class T, class Scalar>
struct GradientOfRows {
  static constexpr int kBlocks = kLossBlocks - 1;  // what it loads takes more registers
  static constexpr bool kDiffersByRow = true;
  const T* grad;  // [rows]
  T loaded[kLossVectors<Scalar>];

  __host__ __device__ explicit GradientOfRows(const T* grad_) : grad(grad_) {}
  __device__ void load(int i, int64_t, int64_t row) { loaded[i] = grad[row]; }
  __device__ T of_all() const { return 1; }
  __device__ T of_plain(int i, int) const { return loaded[i]; }
  __device__ T of(const Term<T>& term) const { return grad[term.row]; }
};

template <class T, class Scalar>
struct GradientOfEach {
  static constexpr int kBlocks = kLossBlocks - 1;
  static constexpr bool kDiffersByRow = false;
  const Scalar* grad;  // [rows, classes]
  Vector<Scalar> loaded[kLossVectors<Scalar>];

  __host__ __device__ explicit GradientOfEach(const Scalar* grad_) : grad(grad_) {}
  __device__ void load(int i, int64_t at, int64_t) { loaded[i] = *reinterpret_cast<const Vector<Scalar>*>(grad + at); }
  __device__ T of_all() const { return 1; }
  __device__ T of_plain(int i, int j) const { return static_cast<T>(loaded[i].at[j]); }
  __device__ T of(const Term<T>& term) const { return static_cast<T>(grad[term.index]); }
};

// The sum over a block, for each of its threads. It may not be called twice with the same `parts` without a barrier
// between.
__device__ inline double sum_of_block(double value, Array<double, kLossThreads / kWarp>& parts) {
  value = over_lanes(value, Plus());
  if (lane() == 0) parts[warp()] = value;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < kLossThreads / kWarp; ++i) sum += parts[i];
  return sum;
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels
// ---------------------------------------------------------------------------------------------------------------------

// The sum over a tile, to `partial` of the block.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    loss_tile_sums(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned,
                   double* partial) {
  DETKIT_SHARED(parts, Array<double, kLossThreads / kWarp>);
  Nothing nothing;
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned, nothing);
  const ValueOf<T, Shape> value_of{shape, weights};
  T plain = 0, others = 0;
  tile.each_plain([&](int, int, T logit) { return shape.value(-logit); },
                  [&](int64_t, const T* values) {
#pragma unroll
                    for (int j = 0; j < Vector<Scalar>::kCount; ++j) plain += values[j];
                  });
  tile.each_other([&](const Term<T>& term) { others += value_of(term); });
  const double total = sum_of_block(plain * weights.off + others, parts);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// The sum of the tiles' sums.
template <class T>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks) loss_total(const double* partial, int64_t count, T* out) {
  DETKIT_SHARED(parts, Array<double, kLossThreads / kWarp>);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kLossThreads) sum += partial[i];
  const double total = sum_of_block(sum, parts);
  if (threadIdx.x == 0) *out = static_cast<T>(total);
}

// The sum over the logits of a row that a lane of a group takes: every group-th `Unit` of them, several in flight.
template <class T, class Unit, class Scalar, class Value>
__device__ T sum_of_lane(const Scalar* logits, int64_t classes, int member, int group, const Value& value) {
  constexpr int kCount = sizeof(Unit) / sizeof(Scalar);
  T sum = 0;
  for (int64_t start = member; start * kCount < classes; start += int64_t{group} * kRowLoads) {
    Unit units[kRowLoads];
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int64_t k = (start + i * group) * kCount;
      if (k < classes) units[i] = *reinterpret_cast<const Unit*>(logits + k);
    }
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int64_t k = (start + i * group) * kCount;
      if (k >= classes) continue;
      const auto* const logit = reinterpret_cast<const Scalar*>(&units[i]);
#pragma unroll
      for (int j = 0; j < kCount; ++j) sum += value(static_cast<T>(logit[j]), k + j);
    }
  }
  return sum;
}

// The sum over each row, by a group of 2^log_group lanes to a row.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks - 1)
    loss_row_sums(Shape shape, LossRows<Scalar> rows, Weights<T> weights, bool in_vectors, int log_group, T* out) {
  const int group = 1 << log_group, thread = static_cast<int>(threadIdx.x), member = thread & (group - 1);
  const int64_t row = int64_t{blockIdx.x} * (kLossThreads >> log_group) + (thread >> log_group);
  const bool is_row = row < rows.rows;
  const int64_t label = is_row ? rows.labels[row] : kIgnored, classes = is_row ? rows.classes : 0;
  const Scalar* const logits = rows.logits + (is_row ? row * rows.classes : 0);
  const ValueOf<T, Shape> value_of{shape, weights};
  const auto value = [&](T logit, int64_t k) {
    return value_of(Term<T>{k == label ? logit : -logit, k == label, label == kIgnored, row, k});
  };
  T sum = in_vectors ? sum_of_lane<T, Vector<Scalar>>(logits, classes, member, group, value)
                     : sum_of_lane<T, Scalar>(logits, classes, member, group, value);
  sum = over_lanes(sum, Plus(), group);
  if (is_row && member == 0) out[row] = sum;
}

// Each logit's loss.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    loss_each(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned,
              Scalar* out) {
  Nothing nothing;
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned, nothing);
  const ValueOf<T, Shape> value_of{shape, weights};
  tile.each_plain([&](int, int, T logit) { return weights.off * shape.value(-logit); },
                  [&](int64_t at, const T* values) { write_vector(values, out + at); });
  tile.each_ignored([&](int64_t at) { write_zeros(out + at); });
  tile.each_other([&](const Term<T>& term) { out[term.index] = static_cast<Scalar>(value_of(term)); });
}

// The gradient to the logits, given `Gradient(incoming)`.
template <class Gradient, class T, class Shape, class Scalar, class Incoming>
__global__ void __launch_bounds__(kLossThreads, Gradient::kBlocks)
    loss_gradient(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned,
                  const Incoming* incoming, Scalar* out) {
  Gradient grad(incoming);
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned, grad);
  const T of_all = grad.of_all();
  const Weights<T> slopes{weights.on * of_all, -weights.off * of_all};  // dz / dlogit is -1 beside the label
  tile.each_plain([&](int i, int j, T logit) { return slopes.off * shape.derivative(-logit) * grad.of_plain(i, j); },
                  [&](int64_t at, const T* values) { write_vector(values, out + at); });
  tile.each_ignored([&](int64_t at) { write_zeros(out + at); });
  tile.each_other([&](const Term<T>& term) {
    const T slope = (term.is_labelled ? slopes.on : slopes.off) * shape.derivative(term.z) * grad.of(term);
    out[term.index] = static_cast<Scalar>(term.is_ignored ? T(0) : slope);
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Their launches
// ---------------------------------------------------------------------------------------------------------------------

template <class Scalar>
int64_t loss_tiles(const LossRows<Scalar>& rows) {
  return divide_up(rows.count(), kLossTile<Scalar>);
}

// `partial` has a place for each of the tiles.
template <class T, class Shape, class Scalar>
void sum_loss(const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights, double* partial, T* out,
              Stream stream) {
  const int64_t tiles = loss_tiles(rows);
  launch(loss_tile_sums<T, Shape, Scalar>, tiles, kLossThreads, stream, shape, rows, Divider(rows.classes), weights,
         is_aligned(rows.logits), partial);
  launch(loss_total<T>, 1, kLossThreads, stream, partial, tiles, out);
}

template <class T, class Shape, class Scalar>
void sum_loss_of_rows(const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights, T* out, Stream stream) {
  constexpr int kCount = Vector<Scalar>::kCount;
  const bool in_vectors = is_aligned(rows.logits) && rows.classes % kCount == 0;
  const int64_t loads = in_vectors ? rows.classes / kCount : rows.classes;
  int log_group = 0;  // lanes enough that each has its loads in flight at once, and few idle
  while (1 << log_group < kWarp && (int64_t{kRowLoads} << log_group) < loads) ++log_group;
  launch(loss_row_sums<T, Shape, Scalar>, divide_up(rows.rows << log_group, kLossThreads), kLossThreads, stream, shape,
         rows, weights, in_vectors, log_group, out);
}

template <class T, class Shape, class Scalar>
void write_loss(const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights, Scalar* out, Stream stream) {
  launch(loss_each<T, Shape, Scalar>, loss_tiles(rows), kLossThreads, stream, shape, rows, Divider(rows.classes),
         weights, is_aligned(rows.logits) && is_aligned(out), out);
}

// `Gradient` is one of GradientOfSum, GradientOfRows and GradientOfEach.
template <class Gradient, class T, class Shape, class Scalar, class Incoming>
void write_loss_gradient(const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights, const Incoming* incoming,
                         Scalar* out, Stream stream) {
  const bool loads_vectors = is_aligned(rows.logits) && is_aligned(out);
  launch(loss_gradient<Gradient, T, Shape, Scalar, Incoming>, loss_tiles(rows), kLossThreads, stream, shape, rows,
         Divider(rows.classes), weights, loads_vectors && (Gradient::kDiffersByRow || is_aligned(incoming)), incoming,
         out);
}

}  // namespace detkit
