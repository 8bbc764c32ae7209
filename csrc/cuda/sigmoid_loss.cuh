// The kernels of the losses on sigmoids, without torch: each logit is read once, in vectors of 16 bytes, and is one call
// of a shape of math/. No one-hot tensor exists: a thread compares the class of a logit with the label of its row.
//
// A block takes a tile of consecutive logits, whatever the rows; each thread has several vectors of it in flight. Sums go
// over tiles of fixed size in fixed order, in double above a thread: they depend on nothing but the input.
#pragma once

#include <cstdint>

#include "../math/labels.h"
#include "warp.cuh"

namespace detkit {

constexpr int kLossThreads = 256;

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

// The logits of a tile: a thread has vectors at `first(i)`, i in 0..kVectors - 1.
template <class T, class Scalar>
class Tile {
 public:
  static constexpr int kCount = Vector<Scalar>::kCount, kVectors = kLossVectors<Scalar>;

  __device__ Tile(const LossRows<Scalar>& rows, const Divider& by_classes, bool is_aligned)
      : rows_(rows), total_(rows.count()), is_aligned_(is_aligned) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t at = first(i);
      if (at >= total_) continue;
      load(at, loaded_[i]);
      row_[i] = by_classes(at);
      label_[i] = rows_.labels[row_[i]];
    }
  }

  // Calls use(first logit, how many, values) with the value of each logit of a vector, for the vectors of the thread.
  template <class Value, class Use>
  __device__ void each(const Value& value, const Use& use) const {
    if (rows_.classes % kCount == 0) {
      each_vector<true>(value, use);
    } else {
      each_vector<false>(value, use);
    }
  }

  // Writes the values of a vector to where its logits lie.
  __device__ void write(int64_t at, int count, const T* values, Scalar* out) const {
    if (is_aligned_ && count == kCount) {
      Vector<Scalar> vector;
#pragma unroll
      for (int j = 0; j < kCount; ++j) vector.at[j] = static_cast<Scalar>(values[j]);
      *reinterpret_cast<Vector<Scalar>*>(out + at) = vector;
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j)
        if (j < count) out[at + j] = static_cast<Scalar>(values[j]);
    }
  }

 private:
  __device__ static int64_t first(int i) {
    const int64_t local = (int64_t{i} * kLossThreads + threadIdx.x) * kCount;
    return int64_t{blockIdx.x} * kLossTile<Scalar> + local;
  }

  __device__ void load(int64_t at, Vector<Scalar>& vector) const {
    if (is_aligned_ && total_ - at >= kCount) {
      vector = *reinterpret_cast<const Vector<Scalar>*>(rows_.logits + at);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) vector.at[j] = at + j < total_ ? rows_.logits[at + j] : Scalar(0.0f);
    }
  }

  // kIsWhole: no vector lies in two rows.
  template <bool kIsWhole, class Value, class Use>
  __device__ void each_vector(const Value& value, const Use& use) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int64_t at = first(i);
      if (at >= total_) continue;
      const int count = total_ - at < kCount ? static_cast<int>(total_ - at) : kCount;
      T values[kCount];
      int64_t row = row_[i], label = label_[i], k = at - row * rows_.classes;
      int labelled = place(label - k), end = place(rows_.classes - k);  // where in the vector they lie
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if (!kIsWhole && j == end && j < count) {
          label = rows_.labels[++row];
          labelled = place(label + j), end = place(rows_.classes + j);
        }
        const T logit = static_cast<T>(loaded_[i].at[j]);
        const bool is_labelled = j == labelled;
        const Term<T> term{is_labelled ? logit : -logit, is_labelled, label == kIgnored, row, at + j};
        values[j] = j < count ? value(term) : T(0);
      }
      use(at, count, values);
    }
  }

  // A place in a vector as a small number; -1 for any other.
  __device__ static int place(int64_t offset) { return offset >= 0 && offset < kCount ? static_cast<int>(offset) : -1; }

  LossRows<Scalar> rows_;
  int64_t total_;
  bool is_aligned_;
  Vector<Scalar> loaded_[kVectors];
  int64_t row_[kVectors], label_[kVectors];
};

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
    T slope = (term.is_labelled ? slopes.on : slopes.off) * shape.derivative(term.z);
    if (grad.of_row) slope *= grad.of_row[term.row];
    if (grad.of_each) slope *= static_cast<T>(grad.of_each[term.index]);
    return slope;
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
__global__ void __launch_bounds__(kLossThreads)
    loss_tile_sums(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned,
                   double* partial) {
  DETKIT_SHARED(parts, Array<double, kLossThreads / kWarp>);
  T sum = 0;
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned);
  tile.each(ValueOf<T, Shape>{shape, weights}, [&](int64_t, int, const T* values) {
#pragma unroll
    for (int j = 0; j < Vector<Scalar>::kCount; ++j) sum += values[j];
  });
  const double total = sum_of_block(sum, parts);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// The sum of the tiles' sums.
template <class T>
__global__ void __launch_bounds__(kLossThreads) loss_total(const double* partial, int64_t count, T* out) {
  DETKIT_SHARED(parts, Array<double, kLossThreads / kWarp>);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kLossThreads) sum += partial[i];
  const double total = sum_of_block(sum, parts);
  if (threadIdx.x == 0) *out = static_cast<T>(total);
}

// The sum over each row, by a group of lanes to a row.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads)
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
__global__ void __launch_bounds__(kLossThreads)
    loss_each(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned, Scalar* out) {
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned);
  tile.each(ValueOf<T, Shape>{shape, weights},
            [&](int64_t at, int count, const T* values) { tile.write(at, count, values, out); });
}

// The gradient to the logits.
template <class T, class Shape, class Scalar>
__global__ void __launch_bounds__(kLossThreads)
    loss_gradient(Shape shape, LossRows<Scalar> rows, Divider by_classes, Weights<T> weights, bool is_aligned,
                  Incoming<T, Scalar> grad, Scalar* out) {
  const Tile<T, Scalar> tile(rows, by_classes, is_aligned);
  tile.each(GradientOf<T, Shape, Scalar>(shape, weights, grad),
            [&](int64_t at, int count, const T* values) { tile.write(at, count, values, out); });
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
