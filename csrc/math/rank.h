// The order in which suppression takes boxes, as a key: by falling score, -0 as 0; NaN and infinite scores last.
#pragma once

#include <cmath>
#include <cstdint>

#include "elementary.h"

namespace detkit {

// A key of a score that is smaller the earlier the box is taken. Scores that are no finite numbers have the largest
// key; no other score has that or the one below.
DETKIT_HD uint32_t rank_key(float score) {
  if (!std::isfinite(score)) return ~uint32_t{0};
  const auto bits = bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  return bits >> 31 ? bits : ~(bits | uint32_t{1} << 31);
}

DETKIT_HD uint64_t rank_key(double score) {
  if (!std::isfinite(score)) return ~uint64_t{0};
  const auto bits = bit_cast<uint64_t>(score + 0.0);
  return bits >> 63 ? bits : ~(bits | uint64_t{1} << 63);
}

}  // namespace detkit
