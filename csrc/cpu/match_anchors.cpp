// Assigns anchors to ground truth in two passes, without an anchors x boxes matrix.
//
// Anchors are taken in blocks of neighbours, side by side (structure of arrays), so that a ground truth meets a vector
// of them at once. A block meets only the ground truth that its bounding box meets: elsewhere the overlap is 0, which
// changes nothing. Pass 1 finds each anchor's best ground truth and labels it by the thresholds; and finds each ground
// truth's largest overlap (its peak), with the first and the last block that reach it. Pass 2, for low-quality matches,
// goes back to these blocks, evaluates the overlaps again, to the same bits, and lifts the labels that a peak rescues.
//
// No result depends on the threads: a block writes only its own anchors, and a maximum is the same in any order.
// Memory beyond the outputs is that of the ground truth and, per thread, its peaks.

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/matching.h"
#include "../math/box.h"
#include "../math/elementary.h"
#include "../math/matching.h"
#include "vectorize.h"

namespace detkit {
namespace {

constexpr int64_t kBlock = 128;  // anchors of a block: several vectors, yet few enough to lie close together
constexpr int64_t kScan = 64;    // boxes that are compared with a block's bounds before the near ones are met
constexpr int64_t kGrain = 64;   // blocks of pass 2 that are worth a thread

// An integer as wide as T: indices beside numbers stay in vectors of as many lanes.
template <class T>
using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// A number as an integer, such that integers are ordered as the numbers; and back. Compilers make vectors of a running
// maximum of integers, not of floating point, where a NaN makes it depend on the order.
template <class T>
DETKIT_INLINE inline Integer<T> to_ordered(T number) {
  const auto bits = bit_cast<Integer<T>>(number);
  return bits < 0 ? bits ^ std::numeric_limits<Integer<T>>::max() : bits;
}

template <class T>
DETKIT_INLINE inline T from_ordered(Integer<T> order) {
  return bit_cast<T>(order < 0 ? order ^ std::numeric_limits<Integer<T>>::max() : order);
}

// One value of each anchor of a block. None is NaN.
template <class T>
struct alignas(64) Lanes {
  T at[kBlock];

  DETKIT_INLINE T& operator[](int64_t i) { return at[i]; }
  DETKIT_INLINE T operator[](int64_t i) const { return at[i]; }

  DETKIT_INLINE T smallest() const {
    return first_by([](auto a, auto b) DETKIT_INLINE { return a < b; });
  }
  DETKIT_INLINE T largest() const {
    return first_by([](auto a, auto b) DETKIT_INLINE { return a > b; });
  }

 private:
  template <class Before>
  DETKIT_INLINE T first_by(const Before& before) const {
    Integer<T> first = to_ordered(at[0]);
    for (int64_t i = 0; i < kBlock; ++i) first = before(to_ordered(at[i]), first) ? to_ordered(at[i]) : first;
    return from_ordered<T>(first);
  }
};

// The anchors of a block. What can overlap nothing (invalid, not finite, no area, past the last) is a box inside out.
template <class T>
struct Block {
  Lanes<T> x0, y0, x1, y1, area;
  Box<T> bounds;

  DETKIT_INLINE void load(const T* anchors, const bool* valid, int64_t count) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < kBlock; ++i) set(i, {infinity, infinity, -infinity, -infinity, T(0)});
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> anchor(anchors + 4 * i);
      if (anchor.area > 0 && anchor.area < infinity && (!valid || valid[i])) set(i, anchor);
    }
    bounds = {x0.smallest(), y0.smallest(), x1.largest(), y1.largest(), T(0)};
  }

  DETKIT_INLINE Lanes<T> overlaps(const Box<T>& box) const {
    Lanes<T> found;
    for (int64_t i = 0; i < kBlock; ++i) found[i] = iou({x0[i], y0[i], x1[i], y1[i], area[i]}, box);
    return found;
  }

  // Whether a box may overlap some anchor.
  DETKIT_INLINE bool may_meet(const Box<T>& box) const {
    return (box.x0 < bounds.x1) & (box.x1 > bounds.x0) & (box.y0 < bounds.y1) & (box.y1 > bounds.y0);
  }

 private:
  DETKIT_INLINE void set(int64_t i, const Box<T>& box) {
    x0[i] = box.x0, y0[i] = box.y0, x1[i] = box.x1, y1[i] = box.y1, area[i] = box.area;
  }
};

// The ground truth of one image: the classes padded as they came, the real boxes packed.
template <class T>
struct Truths {
  const int64_t* classes;
  std::vector<Box<T>> boxes;
  std::vector<int64_t> index;  // of each box among the padded

  Truths(const T* padded_boxes, const int64_t* padded_classes, int64_t padded) : classes(padded_classes) {
    for (int64_t g = 0; g < padded; ++g) {
      if (classes[g] < 0) continue;
      boxes.emplace_back(padded_boxes + 4 * g);
      index.push_back(g);
    }
  }

  // Calls f(g) for the boxes that may overlap some anchor of the block, in order.
  template <class F>
  DETKIT_INLINE void each_near(const Block<T>& block, const F& f) const {
    const int64_t total = static_cast<int64_t>(boxes.size());
    for (int64_t start = 0; start < total; start += kScan) {
      int64_t near[kScan], count = 0;
      for (int64_t g = start; g < std::min(start + kScan, total); ++g) {
        near[count] = g;  // overwritten by the next unless counted: no branch to mispredict
        count += block.may_meet(boxes[g]);
      }
      for (int64_t i = 0; i < count; ++i) f(near[i]);
    }
  }
};

// What each anchor of a block overlaps most so far, and how much.
template <class T>
struct Best {
  Lanes<T> overlap;
  Lanes<Integer<T>> truth;

  DETKIT_INLINE explicit Best(int64_t first_truth) {
    for (int64_t i = 0; i < kBlock; ++i) overlap[i] = T(0), truth[i] = static_cast<Integer<T>>(first_truth);
  }

  // Meets a ground truth: among equals the earlier one stays. Returns its largest overlap with the block. (One loop for
  // each result: in one for both, compilers see a branch.)
  DETKIT_INLINE T meet(const Block<T>& block, const Box<T>& box, int64_t index) {
    const Lanes<T> now = block.overlaps(box);
    for (int64_t i = 0; i < kBlock; ++i) truth[i] = now[i] > overlap[i] ? static_cast<Integer<T>>(index) : truth[i];
    for (int64_t i = 0; i < kBlock; ++i) overlap[i] = now[i] > overlap[i] ? now[i] : overlap[i];
    return now.largest();
  }
};

// A ground truth's largest overlap with any anchor, and the first and the last block that reach it.
template <class T>
struct Peak {
  T overlap = 0;
  int64_t first = 0, last = -1;

  DETKIT_INLINE void include(const Peak& other) {
    if (other.overlap > overlap) {
      *this = other;
    } else if (other.overlap == overlap && overlap > 0) {
      first = std::min(first, other.first), last = std::max(last, other.last);
    }
  }
};

template <class T>
using Peaks = std::vector<std::vector<Peak<T>>>;  // [image][box]

template <class T>
class Matcher {
 public:
  Matcher(MatchingTensors& tensors, const MatchingRule<T>& rule)
      : anchors_(tensors.anchors.const_data_ptr<T>()),
        valid_(tensors.valid_data()),
        count_(tensors.count()),
        blocks_((count_ + kBlock - 1) / kBlock),
        by_image_(tensors.by_image()),
        rule_(rule),
        labels_(tensors.labels.mutable_data_ptr<int64_t>()),
        matched_(tensors.matched.mutable_data_ptr<int64_t>()) {
    const int64_t padded = tensors.truths();
    for (int64_t n = 0; n < tensors.images(); ++n)
      truths_.emplace_back(tensors.gt_boxes.const_data_ptr<T>() + 4 * n * padded,
                           tensors.gt_classes.const_data_ptr<int64_t>() + n * padded, padded);
  }

  void run() {
    const Peaks<T> peaks = label_by_thresholds();
    if (rule_.low_quality != kOff) rescue(peaks);
  }

 private:
  // Pass 1. Blocks of large anchors meet more boxes and cost more: a thread takes the next block that is left.
  Peaks<T> label_by_thresholds() {
    const int64_t workers = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), blocks_));
    std::vector<Peaks<T>> peaks(workers, no_peaks());
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
      Block<T> block;
      for (int64_t b = next++; b < blocks_; b = next++) label_block(block, b, peaks[worker]);
    });
    for (int64_t worker = 1; worker < workers; ++worker) merge(peaks[worker], peaks[0]);
    return std::move(peaks[0]);
  }

  Peaks<T> no_peaks() const {
    Peaks<T> peaks;
    for (const Truths<T>& truths : truths_) peaks.emplace_back(truths.boxes.size());
    return peaks;
  }

  static void merge(const Peaks<T>& from, Peaks<T>& into) {
    for (size_t n = 0; n < into.size(); ++n)
      for (size_t g = 0; g < into[n].size(); ++g) into[n][g].include(from[n][g]);
  }

  void label_block(Block<T>& block, int64_t b, Peaks<T>& peaks) {
    for (int64_t n = 0; n < images(); ++n) {
      on_widest_vectors([&]() DETKIT_INLINE {
        if (n == 0 || by_image_ || valid_) load(block, n, b);
        const Truths<T>& truths = truths_[n];
        Best<T> best(truths.index.empty() ? 0 : truths.index[0]);
        truths.each_near(block, [&](int64_t g) DETKIT_INLINE {
          peaks[n][g].include({best.meet(block, truths.boxes[g], truths.index[g]), b, b});
        });
        write_block(best, n, b);
      });
    }
  }

  DETKIT_INLINE void write_block(const Best<T>& best, int64_t n, int64_t b) {
    const MatchingRule<T> rule = rule_;  // a local one, which the labels cannot alias
    const int64_t count = count_of(b), start = n * count_ + b * kBlock, *classes = truths_[n].classes;
    int64_t *labels = labels_ + start, *matched = matched_ + start;
    const bool nothing = truths_[n].boxes.empty();
    for (int64_t i = 0; i < count; ++i) matched[i] = best.truth[i];
    for (int64_t i = 0; i < count; ++i)
      labels[i] = (nothing | (best.overlap[i] < rule.negative_iou)) ? rule.num_classes : kIgnored;
    if (!nothing && best.overlap.largest() >= rule.positive_iou)
      for (int64_t i = 0; i < count; ++i)
        if (best.overlap[i] >= rule.positive_iou) labels[i] = classes[best.truth[i]];
    for (int64_t i = 0; valid_ && i < count; ++i)
      if (!valid_[start + i]) labels[i] = kIgnored, matched[i] = 0;
  }

  // Pass 2.
  void rescue(const Peaks<T>& peaks) {
    torch::stable::parallel_for(0, blocks_, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t n = 0; n < images(); ++n)
        for (size_t g = 0; g < peaks[n].size(); ++g)
          if (rule_.rescues_at(peaks[n][g].overlap)) rescue_in_blocks(n, g, peaks[n][g], begin, end);
    });
  }

  void rescue_in_blocks(int64_t n, int64_t g, const Peak<T>& peak, int64_t begin, int64_t end) {
    for (int64_t b = std::max(begin, peak.first); b < std::min(end, peak.last + 1); ++b)
      on_widest_vectors([&]() DETKIT_INLINE { rescue_in_block(truths_[n].boxes[g], peak.overlap, n, b); });
  }

  DETKIT_INLINE void rescue_in_block(const Box<T>& box, T peak, int64_t n, int64_t b) {
    Block<T> block;
    load(block, n, b);
    if (!block.may_meet(box)) return;
    const Lanes<T> now = block.overlaps(box);
    const int64_t start = n * count_ + b * kBlock;
    for (int64_t i = 0; i < count_of(b); ++i)
      if (now[i] == peak && rule_.may_lift(labels_[start + i]))
        labels_[start + i] = truths_[n].classes[matched_[start + i]];
  }

  int64_t images() const { return static_cast<int64_t>(truths_.size()); }
  int64_t count_of(int64_t b) const { return std::min(kBlock, count_ - b * kBlock); }

  DETKIT_INLINE void load(Block<T>& block, int64_t n, int64_t b) const {
    const int64_t start = b * kBlock, image = n * count_;
    block.load(anchors_ + 4 * (start + (by_image_ ? image : 0)), valid_ ? valid_ + image + start : nullptr,
               count_of(b));
  }

  const T* anchors_;
  const bool* valid_;  // null where all are
  int64_t count_, blocks_;
  bool by_image_;
  MatchingRule<T> rule_;
  int64_t *labels_, *matched_;
  std::vector<Truths<T>> truths_;
};

void check_classes(const int64_t* classes, int64_t count, int64_t num_classes) {
  const auto* wrong = std::find_if(classes, classes + count, [=](int64_t c) { return c >= num_classes; });
  STD_TORCH_CHECK(wrong == classes + count, "match_anchors: the class ", *wrong, " of the ground truth is not in 0..",
                  num_classes - 1, " (negative: padding)");
}

std::tuple<Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_classes,
                                         std::optional<Tensor> valid, int64_t num_classes, double positive_iou,
                                         double negative_iou, int64_t low_quality) {
  MatchingTensors tensors(anchors, gt_boxes, gt_classes, valid);
  check_classes(tensors.gt_classes.const_data_ptr<int64_t>(), tensors.gt_classes.numel(), num_classes);
  dispatch_floating(tensors.dtype, [&](auto zero) {
    using T = typename Accumulate<decltype(zero)>::type;
    const MatchingRule<T> rule{num_classes, static_cast<T>(positive_iou), static_cast<T>(negative_iou), low_quality};
    Matcher<T>(tensors, rule).run();
  });
  return {tensors.labels, tensors.matched};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace detkit
