// How overlaps with the ground truth become labels (Lin et al. 2017, section 4).
#pragma once

#include <cstdint>

#include "host_device.h"
#include "labels.h"

namespace detkit {

enum LowQuality : int64_t { kOff = 0, kDetectron2 = 1, kDetectron = 2 };

// Thresholds are rounded to the type of the IoU, as PyTorch does in a comparison with a number.
template <class T>
struct MatchingRule {
  int64_t num_classes;
  T positive_iou, negative_iou;
  int64_t low_quality;

  // Whether a peak, a ground truth's largest overlap, can rescue an anchor. One at a peak of `positive_iou` or more is
  // positive without it.
  DETKIT_HD bool rescues_at(T peak) const { return low_quality != kOff && peak > 0 && peak < positive_iou; }

  DETKIT_HD bool may_lift(int64_t label) const {
    return label == kIgnored || (label == num_classes && low_quality == kDetectron2);
  }
};

}  // namespace detkit
