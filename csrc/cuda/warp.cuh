// Warps, and what several kernels do with them.
#pragma once

#include <cstdint>

#include "device.h"

namespace detkit {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// An array in memory of the block.
template <class T, int kCount>
struct Array {
  T at[kCount];

  __device__ T& operator[](int i) { return at[i]; }
  __device__ const T& operator[](int i) const { return at[i]; }
};

// How many of `each` make `count`.
__host__ __device__ inline int64_t divide_up(int64_t count, int64_t each) { return (count + each - 1) / each; }

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// Combines the values of a group of lanes, whose number is a power of 2, and gives the result to each. The order is fixed.
template <class T, class Combine>
__device__ T over_lanes(T value, const Combine& combine, int group = kWarp) {
  for (int distance = group / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// The bits that are set in any lane, for each lane.
__device__ inline uint64_t any_bits(uint64_t bits) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const uint64_t high = __reduce_or_sync(kAllLanes, static_cast<unsigned>(bits >> 32));
  return high << 32 | __reduce_or_sync(kAllLanes, static_cast<unsigned>(bits));
#else
  return over_lanes(bits, [](uint64_t a, uint64_t b) { return a | b; });
#endif
}

// The sum over a lane and those before it.
__device__ inline int sum_up_to(int value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane() >= distance) value += other;
  }
  return value;
}

struct Plus {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Larger {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

struct Smaller {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

}  // namespace detkit
