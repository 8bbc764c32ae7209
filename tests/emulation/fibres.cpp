// The threads of the emulated device. This file is compiled without sanitizers, which it tells what to think instead:
// DETKIT_TSAN and DETKIT_ASAN say that the kernels are compiled with one.
#include <sys/mman.h>

#include <string>
#include <utility>
#include <vector>

#include "context.h"
#include "emulated_device.h"

#ifdef DETKIT_TSAN
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

#ifdef DETKIT_ASAN
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_poison_memory_region(const volatile void* address, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

namespace emulation {
namespace {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 256 * 1024;
constexpr size_t kSharedLimit = 48 * 1024;   // of a block, what every device has
constexpr size_t kWall = 256;                // between variables in memory of the block
constexpr size_t kSharedSlice = 128 * 1024;  // with the walls

void acquire([[maybe_unused]] void* address) {
#ifdef DETKIT_TSAN
  __tsan_acquire(address);
#endif
}

void release([[maybe_unused]] void* address) {
#ifdef DETKIT_TSAN
  __tsan_release(address);
#endif
}

void* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

// Where a number of threads meet, again and again. The addresses that order them alternate: a thread that is already at
// the next meeting must not seem to have been at the last one when others leave that.
struct Meeting {
  int expected = 0, arrived = 0;
  uint64_t passed = 0;
  char ordered[2];
};

struct Fibre {
  Context context;
  char* stack = nullptr;
  void* tsan = nullptr;        // what ThreadSanitizer takes for this thread
  void* fake_stack = nullptr;  // AddressSanitizer's
  Thread thread;
  bool is_done = true;
  size_t shared_used = 0, shared_walled = 0;
  Meeting* waits_at = nullptr;
  uint64_t waits_for = 0;
};

struct Warp {
  Meeting meeting;
  uint64_t values[2][kWarp];  // of two operations in turn: no lane is further ahead
};

class Device {
 public:
  void run(int64_t blocks, int threads, const std::function<void()>& kernel) {
    if (threads < 1 || threads > kMostThreads || threads % kWarp)
      throw std::runtime_error("emulation: a block of " + std::to_string(threads) + " threads");
    if (is_running_) throw std::runtime_error("emulation: a kernel starts a kernel");
    threads_ = threads;
    kernel_ = &kernel;
    error_.clear();
    open_launch(blocks - skipped_);
    for (int64_t b = skipped_; b < blocks && error_.empty(); ++b) run_block(b);
    skipped_ = 0;
    close_launch();
    if (!error_.empty()) {
      fibres_.clear();  // those that still wait are given up
      throw std::runtime_error("emulation: " + error_);
    }
  }

  void skip_blocks(int64_t before) { skipped_ = before; }

  const Thread& current() const { return fibres_[static_cast<size_t>(current_)].thread; }
  int lane() const { return current_ % kWarp; }

  void* shared_memory(size_t bytes) {
    Fibre& fibre = fibres_[static_cast<size_t>(current_)];
    const size_t offset = fibre.shared_walled;
    fibre.shared_used += bytes;
    fibre.shared_walled += (bytes + kWall + 127) / 128 * 128;
    if (fibre.shared_used > kSharedLimit) fail("more than 48 KiB of memory of a block");
    check_declaration(offset, bytes);
#ifdef DETKIT_ASAN
    __asan_unpoison_memory_region(slice_ + offset, bytes);
#endif
    return slice_ + offset;
  }

  void block_barrier() { barrier(block_); }
  void warp_barrier() { barrier(warps_[static_cast<size_t>(current_ / kWarp)].meeting); }

  const uint64_t* exchange(uint64_t value) {
    Warp& warp = warps_[static_cast<size_t>(current_ / kWarp)];
    uint64_t* const values = warp.values[warp.meeting.passed % 2];
    values[lane()] = value;
    meet(warp.meeting);
    return values;
  }

  // Ends the launch from within a thread.
  [[noreturn]] void fail(const std::string& what) {
    const Thread& thread = current();
    error_ = what + " (block " + std::to_string(thread.block.x) + ", thread " + std::to_string(thread.thread.x) + ")";
    for (;;) pause();
  }

 private:
  static void enter();

  void work() {
    Fibre& fibre = fibres_[static_cast<size_t>(current_)];
#ifdef DETKIT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &host_stack_, &host_stack_size_);
#endif
    for (;;) {  // a fibre takes one thread after the other
      acquire(&launch_);
      (*kernel_)();
      release(&launch_end_);
      fibre.is_done = true;
      ++progress_;
      pause();
    }
  }

  void open_launch(int64_t blocks) {
    while (static_cast<int>(fibres_.size()) < threads_) add_fibre();
    warps_.assign(static_cast<size_t>(threads_ / kWarp), Warp());
#ifdef DETKIT_TSAN
    slices_ = blocks;  // each block has its own, for no block is ordered before another
#else
    slices_ = blocks > 0;
#endif
    if (slices_) arena_ = static_cast<char*>(reserve(static_cast<size_t>(slices_) * kSharedSlice));
    release(&launch_);
    is_running_ = true;
  }

  void close_launch() {
    is_running_ = false;
    acquire(&launch_end_);
#ifdef DETKIT_ASAN
    if (slices_) __asan_unpoison_memory_region(arena_, static_cast<size_t>(slices_) * kSharedSlice);
#endif
    if (slices_) munmap(arena_, static_cast<size_t>(slices_) * kSharedSlice);
  }

  void run_block(int64_t block) {
    slice_ = arena_ + static_cast<size_t>(slices_ > 1 ? block - skipped_ : 0) * kSharedSlice;
    declared_.clear();
    block_ = Meeting();
    block_.expected = threads_;
    for (Warp& warp : warps_) warp.meeting = Meeting(), warp.meeting.expected = kWarp;
    for (int i = 0; i < threads_; ++i) {
      Fibre& fibre = fibres_[static_cast<size_t>(i)];
      fibre.thread = {{static_cast<unsigned>(i)}, {static_cast<unsigned>(block)}};
      fibre.is_done = false;
      fibre.shared_used = fibre.shared_walled = 0;
      fibre.waits_at = nullptr;
    }
#ifdef DETKIT_ASAN
    __asan_poison_memory_region(slice_, kSharedSlice);
#endif
    while (error_.empty() && resume_all()) {
    }
  }

  // Lets every thread that can go on do so; returns whether any is left.
  bool resume_all() {
    const uint64_t before = progress_;
    bool is_any_left = false;
    for (int i = 0; i < threads_ && error_.empty(); ++i) {
      Fibre& fibre = fibres_[static_cast<size_t>(i)];
      if (fibre.is_done) continue;
      if (!fibre.waits_at || fibre.waits_at->passed > fibre.waits_for) switch_to(i);
      is_any_left |= !fibre.is_done;
    }
    if (is_any_left && error_.empty() && progress_ == before)
      error_ = "threads wait at a barrier or a warp operation that others never come to";
    return is_any_left;
  }

  void barrier(Meeting& meeting) {
    char* const ordered = &meeting.ordered[meeting.passed % 2];
    release(ordered);
    meet(meeting);
    acquire(ordered);
  }

  void meet(Meeting& meeting) {
    Fibre& fibre = fibres_[static_cast<size_t>(current_)];
    const uint64_t now = meeting.passed;
    if (++meeting.arrived == meeting.expected) {
      meeting.arrived = 0;
      ++meeting.passed;
      ++progress_;
      return;
    }
    fibre.waits_at = &meeting;
    fibre.waits_for = now;
    pause();
    fibre.waits_at = nullptr;
  }

  // All threads of a block declare the same memory in the same order.
  void check_declaration(size_t offset, size_t bytes) {
    for (const auto& [known_offset, known_bytes] : declared_)
      if (known_offset == offset) {
        if (known_bytes != bytes) fail("memory of the block that another thread declares with another size");
        return;
      }
    declared_.emplace_back(offset, bytes);
    for (size_t i = 0; i < bytes; ++i) (slice_ + offset)[i] = static_cast<char>(0xfb);  // garbage; as a float, NaN-like
  }

  void add_fibre() {
    fibres_.emplace_back();
    Fibre& fibre = fibres_.back();
    fibre.stack = static_cast<char*>(reserve(kStack));
    fibre.context.make(fibre.stack, kStack, &Device::enter);
#ifdef DETKIT_TSAN
    fibre.tsan = __tsan_create_fiber(0);
#endif
  }

  void switch_to(int thread) {
    current_ = thread;
    Fibre& fibre = fibres_[static_cast<size_t>(thread)];
#ifdef DETKIT_TSAN
    host_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fibre.tsan, 1);  // 1: the change orders nothing
#endif
#ifdef DETKIT_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fibre.stack, kStack);
#endif
    host_.change_to(fibre.context);
#ifdef DETKIT_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // Back to the host, until this thread is resumed.
  void pause() {
    Fibre& fibre = fibres_[static_cast<size_t>(current_)];
#ifdef DETKIT_TSAN
    __tsan_switch_to_fiber(host_tsan_, 1);
#endif
#ifdef DETKIT_ASAN
    __sanitizer_start_switch_fiber(&fibre.fake_stack, host_stack_, host_stack_size_);
#endif
    fibre.context.change_to(host_);
#ifdef DETKIT_ASAN
    __sanitizer_finish_switch_fiber(fibre.fake_stack, &host_stack_, &host_stack_size_);
#endif
  }

  std::vector<Fibre> fibres_ = [] {
    std::vector<Fibre> fibres;
    fibres.reserve(kMostThreads);  // a context must not move
    return fibres;
  }();
  std::vector<Warp> warps_;
  std::vector<std::pair<size_t, size_t>> declared_;
  Context host_;
  void* host_tsan_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_stack_size_ = 0;
  const std::function<void()>* kernel_ = nullptr;
  std::string error_;
  int threads_ = 0, current_ = 0;
  int64_t slices_ = 0, skipped_ = 0;
  bool is_running_ = false;
  uint64_t progress_ = 0;
  char launch_ = 0, launch_end_ = 0;  // addresses that order the host and the threads
  Meeting block_;
  char *arena_ = nullptr, *slice_ = nullptr;
};

Device& the_device() {
  static thread_local Device device;
  return device;
}

void Device::enter() { the_device().work(); }

}  // namespace

void run(int64_t blocks, int threads, const std::function<void()>& kernel) {
  the_device().run(blocks, threads, kernel);
}
void skip_blocks(int64_t before) { the_device().skip_blocks(before); }
const Thread& current() { return the_device().current(); }
void* shared_memory(size_t bytes) { return the_device().shared_memory(bytes); }
void block_barrier() { the_device().block_barrier(); }
void warp_barrier() { the_device().warp_barrier(); }
const uint64_t* exchange(uint64_t value) { return the_device().exchange(value); }
int current_lane() { return the_device().lane(); }

void check_mask(unsigned lanes) {
  if (lanes != 0xffffffffu) the_device().fail("a warp operation of some lanes");
}

void check_lane(int lane) {
  if (lane < 0 || lane >= kWarp) the_device().fail("a shuffle from lane " + std::to_string(lane));
}

}  // namespace emulation
