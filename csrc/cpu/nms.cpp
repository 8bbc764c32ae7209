#include <numeric>
#include <optional>
#include <vector>

#include "../common/suppression.h"
#include "kept_boxes.h"
#include "rank.h"

namespace detkit {
namespace {

// Boxes [count, 4] in order of suppression. Without groups, all are in one.
template <class Coordinate>
struct Candidates {
  const Coordinate* boxes;
  const int64_t* groups;
  const std::vector<uint32_t>& order;

  int64_t group(uint32_t i) const { return groups ? groups[i] : 0; }
};

// Greedy suppression: each box, in order, is kept unless a kept one of its group suppresses it. `on_kept(index)` says
// whether to go on; `most` is an upper bound of what will be kept.
template <class Coordinate, class OnKept>
void greedy(const Candidates<Coordinate>& candidates, double threshold, int64_t most, OnKept on_kept) {
  const auto count = static_cast<int64_t>(candidates.order.size());
  KeptBoxes<Coordinate> kept(threshold, std::min(most, count));
  for (const uint32_t index : candidates.order) {
    const Coordinate* const box = candidates.boxes + 4 * static_cast<int64_t>(index);
    if (kept.suppress(box, candidates.group(index))) continue;
    if (!on_kept(index)) return;
    kept.add(box, candidates.group(index));
  }
}

Tensor kept_indices(const Tensor& boxes, const Tensor& scores, const int64_t* groups, double threshold,
                    std::optional<int64_t> max_keep) {
  const int64_t count = scores.numel(), most = max_keep.value_or(count);
  std::vector<int64_t> kept;
  if (most > 0) {
    with_exact(boxes, scores, [&](const auto* box, const auto* score) {
      const auto order = rank_by_score(score, count, false);
      greedy(Candidates<std::decay_t<decltype(*box)>>{box, groups, order}, threshold, most, [&](uint32_t index) {
        kept.push_back(index);
        return static_cast<int64_t>(kept.size()) < most;
      });
    });
  }
  Tensor out = torch::stable::new_empty(scores, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<int64_t> max_keep) {
  return kept_indices(boxes, scores, nullptr, iou_threshold, max_keep);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& groups, double iou_threshold,
                   std::optional<int64_t> max_keep) {
  return kept_indices(boxes, scores, PerBox("batched_nms: groups", groups, scores).from(0), iou_threshold, max_keep);
}

// How many boxes of each kind are still wanted; without a quota, all.
class Quota {
 public:
  // Of `count` boxes.
  Quota(const std::optional<std::vector<int64_t>>& quota, int64_t count)
      : unlimited_(!quota),
        left_(bounded(quota.value_or(std::vector<int64_t>{}), count)),
        total_(std::accumulate(left_.begin(), left_.end(), int64_t{0})) {}

  bool is_full() const { return !unlimited_ && total_ == 0; }

  bool take(int64_t kind) {
    if (unlimited_) return true;
    if (kind < 0 || kind >= static_cast<int64_t>(left_.size()) || left_[kind] == 0) return false;
    --left_[kind];
    --total_;
    return true;
  }

 private:
  bool unlimited_;
  std::vector<int64_t> left_;
  int64_t total_;
};

template <class Coordinate, class Score>
void mask_image(const Coordinate* boxes, const Score* scores, const int64_t* groups, const int64_t* kinds,
                int64_t count, double threshold, Quota quota, bool* mask) {
  std::fill_n(mask, count, false);
  if (quota.is_full()) return;
  const auto order = rank_by_score(scores, count, true);
  greedy(Candidates<Coordinate>{boxes, groups, order}, threshold, count, [&](uint32_t index) {
    mask[index] = quota.take(kinds ? kinds[index] : 0);
    return !quota.is_full();
  });
}

Tensor nms_mask(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<Tensor> groups,
                std::optional<Tensor> kinds, std::optional<std::vector<int64_t>> quota) {
  const PerBox group("nms_mask: groups", groups, scores), kind("nms_mask: kinds", kinds, scores);
  const int64_t images = scores.size(0), count = scores.size(1);
  const Quota wanted(quota, count);
  Tensor mask = torch::stable::new_empty(scores, scores.sizes(), ScalarType::Bool);
  bool* const out = mask.mutable_data_ptr<bool>();
  with_exact(boxes, scores, [&](const auto* box, const auto* score) {
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        mask_image(box + 4 * i * count, score + i * count, group.from(i * count), kind.from(i * count), count,
                   iou_threshold, wanted, out + i * count);
    });
  });
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_mask", TORCH_BOX(&nms_mask));
}

}  // namespace detkit
