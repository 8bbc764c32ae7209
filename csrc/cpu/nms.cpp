#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <vector>

#include "../common/tensor.h"
#include "../math/box.h"

namespace detkit {
namespace {

// Indices by falling score, ties by index; NaN and infinite scores last, by index.
std::vector<int64_t> rank_by_score(const double* scores, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  const auto last =
      std::stable_partition(order.begin(), order.end(), [=](int64_t i) { return std::isfinite(scores[i]); });
  std::stable_sort(order.begin(), last, [=](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return order;
}

// Greedy suppression: each box, in order, is compared with the kept boxes of its group. `on_kept(index)` says whether
// to go on. Without groups, all boxes are in one.
template <class OnKept>
void greedy(const std::vector<int64_t>& order, const double* boxes, const int64_t* groups, double threshold,
            OnKept on_kept) {
  std::unordered_map<int64_t, std::vector<Box<double>>> kept;
  for (const int64_t index : order) {
    const Box<double> box(boxes + 4 * index);
    auto& rivals = kept[groups ? groups[index] : 0];
    const auto beats = [&](const Box<double>& rival) { return suppresses(rival, box, threshold); };
    if (std::any_of(rivals.begin(), rivals.end(), beats)) continue;
    rivals.push_back(box);
    if (!on_kept(index)) return;
  }
}

Tensor kept_indices(const Tensor& boxes, const Tensor& scores, const int64_t* groups, double threshold,
                    std::optional<int64_t> max_keep) {
  const Tensor b = contiguous_as(boxes, ScalarType::Double), s = contiguous_as(scores, ScalarType::Double);
  const int64_t most = max_keep.value_or(s.numel());
  std::vector<int64_t> kept;
  if (most > 0) {
    greedy(rank_by_score(s.const_data_ptr<double>(), s.numel()), b.const_data_ptr<double>(), groups, threshold,
           [&](int64_t index) {
             kept.push_back(index);
             return static_cast<int64_t>(kept.size()) < most;
           });
  }
  Tensor out = torch::stable::new_empty(s, {static_cast<int64_t>(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<int64_t> max_keep) {
  return kept_indices(boxes, scores, nullptr, iou_threshold, max_keep);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& groups, double iou_threshold,
                   std::optional<int64_t> max_keep) {
  const Tensor g = contiguous_as(groups, ScalarType::Long);
  return kept_indices(boxes, scores, g.const_data_ptr<int64_t>(), iou_threshold, max_keep);
}

// How many boxes of each kind are still wanted; without a quota, all.
class Quota {
 public:
  explicit Quota(const std::optional<std::vector<int64_t>>& quota)
      : unlimited_(!quota), left_(quota.value_or(std::vector<int64_t>{})) {
    total_ = std::accumulate(left_.begin(), left_.end(), int64_t{0});
  }

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

void mask_image(const double* boxes, const double* scores, const int64_t* kinds, int64_t count, double threshold,
                Quota quota, bool* mask) {
  std::fill(mask, mask + count, false);
  if (quota.is_full()) return;
  std::vector<int64_t> order = rank_by_score(scores, count);
  const auto excluded = [=](int64_t i) { return scores[i] == -std::numeric_limits<double>::infinity(); };
  order.erase(std::remove_if(order.begin(), order.end(), excluded), order.end());
  greedy(order, boxes, nullptr, threshold, [&](int64_t index) {
    mask[index] = quota.take(kinds ? kinds[index] : 0);
    return !quota.is_full();
  });
}

Tensor nms_mask(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<Tensor> kinds,
                std::optional<std::vector<int64_t>> quota) {
  const Tensor b = contiguous_as(boxes, ScalarType::Double), s = contiguous_as(scores, ScalarType::Double);
  const Tensor k = kinds ? contiguous_as(*kinds, ScalarType::Long) : s;
  const double* box = b.const_data_ptr<double>();
  const double* score = s.const_data_ptr<double>();
  const int64_t* kind = kinds ? k.const_data_ptr<int64_t>() : nullptr;
  const int64_t images = s.size(0), count = s.size(1);
  const Quota wanted(quota);
  Tensor mask = torch::stable::new_empty(s, s.sizes(), ScalarType::Bool);
  bool* out = mask.mutable_data_ptr<bool>();
  torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      mask_image(box + 4 * i * count, score + i * count, kind ? kind + i * count : nullptr, count, iou_threshold,
                 wanted, out + i * count);
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
