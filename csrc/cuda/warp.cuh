// Warps, and what several kernels do with them.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../math/elementary.h"
#include "device.h"

namespace detkit {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// An array in memory of the block.
template <class T, int kCount>
struct Array {
  T at[kCount];

  __device__ T& operator[](int i) { return at[i]; }
  __device__ const T& operator[](int i) const { return at[i]; }
};

// The corners of a box, for accesses of 16 bytes.
template <class T>
struct alignas(16) Corners {
  T xyxy[4];
};

inline bool is_aligned(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

template <class T>
__device__ Corners<T> load_corners(const T* xyxy, bool is_aligned) {
  if (is_aligned) return *reinterpret_cast<const Corners<T>*>(xyxy);
  return {{xyxy[0], xyxy[1], xyxy[2], xyxy[3]}};
}

// How many of `each` make `count`.
__host__ __device__ inline int64_t divide_up(int64_t count, int64_t each) { return (count + each - 1) / each; }

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// Combines the values of a group of lanes, whose number is a power of 2, and gives the result to each. The order is
// fixed.
template <class T, class Combine>
__device__ T over_lanes(T value, const Combine& combine, int group = kWarp) {
  for (int distance = group / 2; distance > 0; distance /= 2)
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
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

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define DETKIT_REDUCES_WARPS  // in one instruction, for 32 bits
#endif

// The bits that are set in any lane, for each lane.
__device__ inline uint64_t any_bits(uint64_t bits) {
#ifdef DETKIT_REDUCES_WARPS
  const uint64_t high = __reduce_or_sync(kAllLanes, static_cast<unsigned>(bits >> 32));
  return high << 32 | __reduce_or_sync(kAllLanes, static_cast<unsigned>(bits));
#else
  return over_lanes(bits, [](uint64_t a, uint64_t b) { return a | b; });
#endif
}

// The integers of numbers of 0 and above, which are ordered as they are.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, unsigned, unsigned long long>;

// The largest of the numbers of all lanes, none below 0, as its bits.
template <class T>
__device__ Bits<T> largest_bits(T number) {
  const auto bits = bit_cast<Bits<T>>(number);
#ifdef DETKIT_REDUCES_WARPS
  if constexpr (sizeof(T) == 4) return __reduce_max_sync(kAllLanes, bits);
#endif
  return over_lanes(bits, Larger());
}

// The sum over a lane and those before it.
__device__ inline int sum_up_to(int value) {
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane() >= distance) value += other;
  }
  return value;
}

}  // namespace detkit
