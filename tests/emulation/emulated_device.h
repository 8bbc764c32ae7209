// A device emulated on the CPU, for csrc/cuda/device.h: it runs the sources of the kernels as they are. Blocks run one
// after the other, the threads of a block as fibres that change at barriers and warp operations. What the rules of that
// header forbid ends the launch with an error: a barrier that some threads do not come to, a warp operation without all
// lanes, memory of the block that threads declare differently.
//
// Memory of the block holds garbage at first, and is walled off under AddressSanitizer. Under ThreadSanitizer a fibre
// is a thread, and only what orders threads on a device orders them: barriers, not warp shuffles, nor the order in
// which they happen to run; and no block is ordered before another of its launch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

#define DETKIT_SHARED(name, ...) \
  __VA_ARGS__& name = *static_cast<__VA_ARGS__*>(emulation::shared_memory(sizeof(__VA_ARGS__)))

namespace emulation {

struct Index {
  unsigned x;
};

struct Thread {
  Index thread, block;
};

// Runs a kernel, bound to its arguments, to its end. Throws std::runtime_error where it breaks a rule.
void run(int64_t blocks, int threads, const std::function<void()>& kernel);

// Lets the next launch leave out blocks before one, which would take too long.
void skip_blocks(int64_t before);

// What a thread can ask for, within a kernel.
const Thread& current();
void* shared_memory(size_t bytes);
void block_barrier();
void warp_barrier();
const uint64_t* exchange(uint64_t value);  // gives `value` to the warp, returns those of all lanes
int current_lane();
void check_mask(unsigned lanes);
void check_lane(int lane);

template <class T>
T shuffled(unsigned lanes, T value, int source_lane) {
  static_assert((sizeof(T) == 4 || sizeof(T) == 8) && std::is_trivially_copyable_v<T>,
                "a device shuffles 4 or 8 bytes");
  check_mask(lanes);
  check_lane(source_lane);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits)[source_lane];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

#define threadIdx (emulation::current().thread)
#define blockIdx (emulation::current().block)

inline void __syncthreads() { emulation::block_barrier(); }

inline void __syncwarp() { emulation::warp_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int distance) {
  return emulation::shuffled(lanes, value, emulation::current_lane() ^ distance);
}

template <class T>
T __shfl_up_sync(unsigned lanes, T value, int distance) {
  const int lane = emulation::current_lane();
  return emulation::shuffled(lanes, value, lane < distance ? lane : lane - distance);
}

inline unsigned __ballot_sync(unsigned lanes, bool holds) {
  emulation::check_mask(lanes);
  const uint64_t* const values = emulation::exchange(holds);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= static_cast<unsigned>(values[lane]) << lane;
  return found;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }

template <class T>
T atomicMax(T* address, T value) {
  T found = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (found < value &&
         !__atomic_compare_exchange_n(address, &found, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return found;
}

template <class T>
T atomicOr(T* address, T value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicAnd(T* address, T value) {
  return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}

// A load past the first-level cache, which is what may race with atomics of other blocks.
template <class T>
T __ldcg(const T* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}

namespace detkit {

struct Stream {};

// The emulated device is wherever the memory of the CPU is.
class OnDevice {
 public:
  explicit OnDevice(int32_t) {}

  Stream stream() const { return {}; }
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Stream, Arguments... arguments) {
  emulation::run(blocks, threads, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

inline void set_to_zero(void* memory, int64_t bytes, Stream) {
  if (bytes) std::memset(memory, 0, static_cast<size_t>(bytes));
}

inline int64_t read_when_done(const int64_t* number, Stream) { return *number; }

}  // namespace detkit
