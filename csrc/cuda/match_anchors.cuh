// The kernels of match_anchors, without torch. A thread has an anchor, a warp 32 neighbours; it compares only the
// ground truth that their bounding box meets, for elsewhere the overlap is 0, which changes nothing. 32 ground truths
// are tried at once, one by each lane; those that are near are then met by all lanes, in order. No anchors x boxes
// matrix exists.
//
//   label   finds each anchor's best ground truth and labels it by the thresholds; and each ground truth's largest
//   overlap
//           (its peak), as a maximum of integers, which is the same in any order.
//   rescue  for low-quality matches: evaluates overlaps again, to the same bits, with the ground truth whose peak can
//           rescue an anchor, and lifts the labels of those that reach it.
#pragma once

#include <cstdint>

#include "../math/box.h"
#include "../math/elementary.h"
#include "../math/matching.h"
#include "warp.cuh"

namespace detkit {

constexpr int kMatchThreads = 256;
constexpr int kMatchBlocks = 4;  // of them, at least, have registers on a multiprocessor: more would spill

template <class T>
struct Matching {
  int64_t images, count, truths;  // anchors of an image, ground truths with padding
  const T* anchors;               // [count, 4], or [images, count, 4]
  bool by_image;
  const bool* valid;          // [images, count]; null: all are
  const T* gt_boxes;          // [images, truths, 4]
  bool is_aligned;            // to 16 bytes, both arrays of boxes
  const int64_t* gt_classes;  // [images, truths], negative: padding
  MatchingRule<T> rule;
  Bits<T>* peaks;             // [images, truths], zero at first; unused without low-quality matches
  int64_t *labels, *matched;  // [images, count]

  __host__ __device__ int64_t blocks_of_image() const { return divide_up(count, kMatchThreads); }
};

// The anchors of a warp, one to a lane, and what bounds them.
template <class T>
struct Anchors {
  int64_t image, index;  // of the lane's anchor
  bool is_anchor, is_valid;
  Box<T> box;
  Corners<T> bounds;

  __device__ explicit Anchors(const Matching<T>& m)
      : image(blockIdx.x / m.blocks_of_image()),
        index(int64_t{blockIdx.x} % m.blocks_of_image() * kMatchThreads + threadIdx.x),
        is_anchor(index < m.count),
        is_valid(is_anchor && (!m.valid || m.valid[image * m.count + index])),
        box(kInfinity<T>, kInfinity<T>, -kInfinity<T>, -kInfinity<T>, 0) {
    if (is_valid) {
      const T* const corners = m.anchors + 4 * (index + (m.by_image ? image * m.count : 0));
      const Box<T> anchor(load_corners(corners, m.is_aligned).xyxy);
      if (anchor.area > 0 && anchor.area < kInfinity<T>) box = anchor;  // no other overlaps anything
    }
    bounds = {{over_lanes(box.x0, Smaller()), over_lanes(box.y0, Smaller()), over_lanes(box.x1, Larger()),
               over_lanes(box.y1, Larger())}};
  }

  // Whether a box may overlap an anchor of the warp.
  __device__ bool may_meet(const Corners<T>& other) const { return may_overlap(other.xyxy, bounds.xyxy); }
};

// Calls meet(ground truth, its box) in order for those that `is_wanted(ground truth)` and are near; by all lanes.
template <class T, class IsWanted, class Meet>
__device__ void each_near(const Matching<T>& m, const Anchors<T>& anchors, const IsWanted& is_wanted,
                          const Meet& meet) {
  const T* const boxes = m.gt_boxes + 4 * anchors.image * m.truths;
  for (int64_t start = 0; start < m.truths; start += kWarp) {
    const int64_t mine = start + lane();
    bool is_near = mine < m.truths && is_wanted(mine);
    if (is_near) is_near = anchors.may_meet(load_corners(boxes + 4 * mine, m.is_aligned));
    for (unsigned near = __ballot_sync(kAllLanes, is_near); near; near &= near - 1) {
      const int64_t truth = start + __ffs(static_cast<int>(near)) - 1;
      meet(truth, Box<T>(load_corners(boxes + 4 * truth, m.is_aligned).xyxy));
    }
  }
}

// The first ground truth that is no padding; `truths` if there is none. By all lanes.
template <class T>
__device__ int64_t first_truth(const Matching<T>& m, const int64_t* classes) {
  for (int64_t start = 0; start < m.truths; start += kWarp) {
    const unsigned real = __ballot_sync(kAllLanes, start + lane() < m.truths && classes[start + lane()] >= 0);
    if (real) return start + __ffs(static_cast<int>(real)) - 1;
  }
  return m.truths;
}

template <class T>
__global__ void __launch_bounds__(kMatchThreads, kMatchBlocks) label_anchors(Matching<T> m) {
  const Anchors<T> anchors(m);
  const int64_t* const classes = m.gt_classes + anchors.image * m.truths;
  const int64_t first = first_truth(m, classes);
  const bool is_any = first < m.truths;
  T most = 0;
  int64_t best = is_any ? first : 0;
  each_near(
      m, anchors, [&](int64_t truth) { return classes[truth] >= 0; },
      [&](int64_t truth, const Box<T>& box) {
        const T overlap = iou(anchors.box, box);
        if (overlap > most) most = overlap, best = truth;  // among equals the earlier one stays
        if (m.rule.low_quality == kOff) return;
        const Bits<T> peak = largest_bits(overlap);
        Bits<T>* const known = m.peaks + anchors.image * m.truths + truth;
        if (lane() == 0 && peak > __ldcg(known)) atomicMax(known, peak);  // mostly it is known to be no larger
      });
  if (!anchors.is_anchor) return;
  int64_t label = kIgnored;
  if (!is_any || most < m.rule.negative_iou) label = m.rule.num_classes;
  if (is_any && most >= m.rule.positive_iou) label = classes[best];
  const int64_t at = anchors.image * m.count + anchors.index;
  m.labels[at] = anchors.is_valid ? label : kIgnored;
  m.matched[at] = anchors.is_valid ? best : 0;
}

template <class T>
__global__ void __launch_bounds__(kMatchThreads, kMatchBlocks) rescue_anchors(Matching<T> m) {
  const Anchors<T> anchors(m);
  const int64_t* const classes = m.gt_classes + anchors.image * m.truths;
  const Bits<T>* const peaks = m.peaks + anchors.image * m.truths;
  const int64_t at = anchors.image * m.count + anchors.index;
  bool is_rescued = false;
  each_near(
      m, anchors, [&](int64_t truth) { return m.rule.rescues_at(bit_cast<T>(peaks[truth])); },
      [&](int64_t truth, const Box<T>& box) { is_rescued |= iou(anchors.box, box) == bit_cast<T>(peaks[truth]); });
  if (anchors.is_valid && is_rescued && m.rule.may_lift(m.labels[at])) m.labels[at] = classes[m.matched[at]];
}

// Without low-quality matches `peaks` may be null, else it is [images, truths].
template <class T>
void match(const Matching<T>& m, Stream stream) {
  const int64_t blocks = m.images * m.blocks_of_image();
  const bool rescues = m.rule.low_quality != kOff;
  if (rescues) set_to_zero(m.peaks, m.images * m.truths * static_cast<int64_t>(sizeof(Bits<T>)), stream);
  launch(label_anchors<T>, blocks, kMatchThreads, stream, m);
  if (rescues && m.truths) launch(rescue_anchors<T>, blocks, kMatchThreads, stream, m);
}

}  // namespace detkit
