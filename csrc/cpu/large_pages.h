// Memory for large results. A tensor above glibc's threshold lands in fresh pages at every call, and with pages of 4 KB
// their faults cost more than most loops; the kernel is asked for pages of 2 MB, where it grants them on request. Where
// the allocator keeps the memory afterwards, the wish stays with it: whoever has it next gets large pages, too.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detkit {

inline void ask_for_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  constexpr int64_t kWorthwhile = int64_t{8} << 20;
  if (bytes < kWorthwhile) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a wish: refusal changes nothing
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace detkit
