// The kernels of the losses on sigmoids, without torch: each logit is read in vectors of 16 bytes, and is one call of a
// shape of math/. No one-hot tensor exists.
//
// A block takes a tile of consecutive logits, whatever the rows; each thread has several vectors of it in flight. Nearly
// all vectors are plain: background only, so that nothing in them depends on labels. The arithmetic is as dear as the memory
// (csrc/README.md), and this saves a third of it; the other vectors are taken afterwards, logit by logit. Sums go over tiles
// of fixed size in fixed order, in double above a thread: they depend on nothing but the input.
#pragma once

#include <cstdint>

#include "../math/labels.h"
#include "warp.cuh"

namespace detkit {

constexpr int kLossThreads = 256;
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

  // Vectors are plain only where all memory is aligned.
  __device__ Tile(const LossRows<Scalar>& rows, const Divider& by_classes, bool is_aligned)
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
    }
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (k[i] < 0 || rows_.classes < kCount) continue;  // a vector has parts of two rows at most
      const int64_t end = rows_.classes - k[i];
      const bool is_plain = label[i] != kIgnored && !is_in_vector(label[i] - k[i]) && next_label[i] != kIgnored &&
                            !is_in_vector(next_label[i] + end);
      if (is_plain) others_ &= ~(1u << i), plain_ |= 1u << i;
    }
  }

  // Calls use(index of the first logit, value of each) for the plain vectors, given value(background logit).
  template <class Value, class Use>
  __device__ void each_plain(const Value& value, const Use& use) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!(plain_ >> i & 1)) continue;
      T values[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = value(static_cast<T>(loaded_[i].at[j]));
      use(first(i), values);
    }
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

  __device__ static bool is_in_vector(int64_t offset) { return static_cast<uint64_t>(offset) < kCount; }

  LossRows<Scalar> rows_;
  int64_t total_;
  Divider by_classes_;
  Vector<Scalar> loaded_[kVectors];
  unsigned plain_ = 0, others_ = 0;  // a bit for each vector
};

// Writes the values of a vector to where its logits lie.
template <class Scalar, class T>
__device__ void write_vector(const T* values, Scalar* out) {
  Vector<Scalar> vector;
#pragma unroll
  for (int j = 0; j < Vector<Scalar>::kCount; ++j) vector.at[j] = static_cast<Scalar>(values[j]);
  *reinterpret_cast<Vector<Scalar>*>(out) = vector;
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

// The gradient that comes to the reduced loss: that of all logits, of a row, or of each. Two of them are null.
template <class T, class Scalar>
struct Incoming {
  const T *of_all, *of_row;
  const Scalar* of_each;
};

template <class T, class Shape, class Scalar>
struct GradientOf {
  Shape shape;
  Weights<T> slopes;  // of z, turned back: dz / dlogit is -1 beside the label
  Incoming<T, Scalar> grad;

  __device__ GradientOf(const Shape& shape_, Weights<T> weights, const Incoming<T, Scalar>& grad_)
      : shape(shape_), grad(grad_) {
    const T of_all = grad.of_all ? *grad.of_all : T(1);
    slopes = {weights.on * of_all, -weights.off * of_all};
  }

  __device__ T operator()(const Term<T>& term) const {
    if (term.is_ignored) return 0;
    return (term.is_labelled ? slopes.on : slopes.off) * shape.derivative(term.z) * of(term.index, term.row);
  }

  __device__ T of(int64_t index, int64_t row) const {
    return grad.of_row ? grad.of_row[row] : grad.of_each ? static_cast<T>(grad.of_each[index]) : T(1);
  }
};

// The sum over a block, for each of its threads. It may not be called twice with the same `parts` without a barrier between.
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
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned);
  const ValueOf<T, Shape> value_of{shape, weights};
  T plain = 0, others = 0;
  tile.each_plain([&](T logit) { return shape.value(-logit); },
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

// The sum over each row, by a group of lanes to a row.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    loss_row_sums(Shape shape, LossRows<Scalar> rows, Weights<T> weights, bool in_vectors, int group, T* out) {
  constexpr int kCount = Vector<Scalar>::kCount;
  const int64_t row = (int64_t{blockIdx.x} * kLossThreads + threadIdx.x) / group;
  const int member = static_cast<int>(threadIdx.x) % group;
  const bool is_row = row < rows.rows;
  const int64_t label = is_row ? rows.labels[row] : kIgnored;
  const int64_t classes = label == kIgnored ? 0 : rows.classes;
  const Scalar* const logits = rows.logits + (is_row ? row * rows.classes : 0);
  const ValueOf<T, Shape> value_of{shape, weights};
  const auto value = [&](Scalar scalar, int64_t k) {
    const T logit = static_cast<T>(scalar);
    return value_of(Term<T>{k == label ? logit : -logit, k == label, false, row, k});
  };
  T sum = 0;
  if (in_vectors) {
    for (int64_t k = int64_t{member} * kCount; k < classes; k += int64_t{group} * kCount) {
      const auto vector = *reinterpret_cast<const Vector<Scalar>*>(logits + k);
#pragma unroll
      for (int j = 0; j < kCount; ++j) sum += value(vector.at[j], k + j);
    }
  } else {
    for (int64_t k = member; k < classes; k += group) sum += value(logits[k], k);
  }
  sum = over_lanes(sum, Plus(), group);
  if (is_row && member == 0) out[row] = sum;
}

// Each logit's loss.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    loss_each(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned, Scalar* out) {
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned);
  const ValueOf<T, Shape> value_of{shape, weights};
  tile.each_plain([&](T logit) { return weights.off * shape.value(-logit); },
                  [&](int64_t at, const T* values) { write_vector(values, out + at); });
  tile.each_other([&](const Term<T>& term) { out[term.index] = static_cast<Scalar>(value_of(term)); });
}

// The gradient to the logits. Where that which comes in differs by row or logit, no vector is plain.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads, kLossBlocks)
    loss_gradient(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned,
                  Incoming<T, Scalar> grad, Scalar* out) {
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned && !grad.of_row && !grad.of_each);
  const GradientOf<T, Shape, Scalar> gradient_of(shape, weights, grad);
  tile.each_plain([&](T logit) { return gradient_of.slopes.off * shape.derivative(-logit); },
                  [&](int64_t at, const T* values) { write_vector(values, out + at); });
  tile.each_other([&](const Term<T>& term) { out[term.index] = static_cast<Scalar>(gradient_of(term)); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Their launches
// ---------------------------------------------------------------------------------------------------------------------

inline bool is_aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

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
  constexpr int kLoads = 4;  // of a lane, so that several are in flight and few lanes idle
  const bool in_vectors = is_aligned(rows.logits) && rows.classes % kCount == 0;
  const int64_t loads = in_vectors ? rows.classes / kCount : rows.classes;
  int group = 1;
  while (group < kWarp && int64_t{group} * kLoads < loads) group *= 2;
  launch(loss_row_sums<T, Shape, Scalar>, divide_up(rows.rows * group, kLossThreads), kLossThreads, stream, shape, rows,
         weights, in_vectors, group, out);
}

template <class T, class Shape, class Scalar>
void write_loss(const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights, Scalar* out, Stream stream) {
  launch(loss_each<T, Shape, Scalar>, loss_tiles(rows), kLossThreads, stream, shape, rows, Divider(rows.classes),
         weights, is_aligned(rows.logits) && is_aligned(out), out);
}

template <class T, class Shape, class Scalar>
void write_loss_gradient(const Shape& shape, const LossRows<Scalar>& rows, Weights<T> weights,
                         const Incoming<T, Scalar>& grad, Scalar* out, Stream stream) {
  launch(loss_gradient<T, Shape, Scalar>, loss_tiles(rows), kLossThreads, stream, shape, rows, Divider(rows.classes),
         weights, is_aligned(rows.logits) && is_aligned(out), grad, out);
}

}  // namespace detkit
