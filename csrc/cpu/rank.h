// The order in which suppression takes boxes: by falling score, ties by index; NaN and infinite scores last, by index.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../math/rank.h"

namespace detkit {

// Sorts values by their upper 32 bits, keeping the order of equal ones: a radix sort, 11 bits at a time.
inline void sort_by_upper_half(std::vector<uint64_t>& values) {
  constexpr int kBits = 11;
  constexpr size_t kBuckets = size_t{1} << kBits;
  std::vector<uint64_t> sorted(values.size());
  for (int shift = 32; shift < 64; shift += kBits) {
    size_t start[kBuckets] = {};
    const auto bucket = [=](uint64_t value) { return (value >> shift) & (kBuckets - 1); };
    for (const uint64_t value : values) ++start[bucket(value)];
    size_t before = 0;
    for (size_t& s : start) {
      const size_t count = s;
      s = before;
      before += count;
    }
    for (const uint64_t value : values) sorted[start[bucket(value)]++] = value;
    values.swap(sorted);
  }
}

// Indices in order; those of score -inf are left out where they are no candidates. At most 2^32 scores.
inline std::vector<uint32_t> rank_by_score(const float* scores, int64_t count, bool without_minus_infinity) {
  constexpr size_t kWorthwhile = 512;  // where counting beats comparing
  std::vector<uint64_t> keyed;
  keyed.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    if (!without_minus_infinity || scores[i] != -std::numeric_limits<float>::infinity())
      keyed.push_back(uint64_t{rank_key(scores[i])} << 32 | static_cast<uint64_t>(i));
  if (keyed.size() < kWorthwhile) {
    std::sort(keyed.begin(), keyed.end());
  } else {
    sort_by_upper_half(keyed);
  }
  return {keyed.begin(), keyed.end()};  // the lower halves
}

inline std::vector<uint32_t> rank_by_score(const double* scores, int64_t count, bool without_minus_infinity) {
  std::vector<uint32_t> order;
  for (int64_t i = 0; i < count; ++i)
    if (!without_minus_infinity || scores[i] != -std::numeric_limits<double>::infinity())
      order.push_back(static_cast<uint32_t>(i));
  std::stable_sort(order.begin(), order.end(),
                   [=](uint32_t a, uint32_t b) { return rank_key(scores[a]) < rank_key(scores[b]); });
  return order;
}

}  // namespace detkit
