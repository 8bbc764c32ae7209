#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/suppression.h"
#include "nms.cuh"

namespace detkit {
namespace {

// Values and indices of a stable sort by rising value along the last dimension.
std::tuple<Tensor, Tensor> stable_sort(const Tensor& values) {
  StableIValue stack[] = {torch::stable::detail::from(values), torch::stable::detail::from(std::optional<bool>(true)),
                          torch::stable::detail::from(int64_t{-1}), torch::stable::detail::from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// What is suppressed, and how far: groups and kinds may be null, without a quota all survivors are wanted.
struct Request {
  int64_t images, count;
  double threshold;
  const int64_t *groups, *kinds;
  std::optional<std::vector<int64_t>> quota;
  bool has_no_candidates;
};

// Memory of the device that lives as long as its launches are being made: what is freed then is used again only after
// them, for both are in the order of the stream.
class Memory {
 public:
  explicit Memory(const Tensor& like) : like_(like) {}

  template <class T>
  T* of(int64_t count) {
    held_.push_back(torch::stable::new_empty(like_, {count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }

  template <class T>
  T* zeros_of(int64_t count, Stream stream) {
    T* const memory = of<T>(count);
    set_to_zero(memory, count * static_cast<int64_t>(sizeof(T)), stream);
    return memory;
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> held_;
};

// Suppresses, into a mask [images, count] of zeros or a list [count] of which it returns where its length will stand.
void suppress_boxes(const Tensor& boxes, const Tensor& scores, const Request& request, bool* mask, int64_t* list,
                    int64_t* num_result, Memory& memory, Stream stream) {
  with_exact(boxes, scores, [&](const auto* box, const auto* score) {
    using Coordinate = std::decay_t<decltype(*box)>;
    using Score = std::decay_t<decltype(*score)>;
    const int64_t all = request.images * request.count;
    Tensor keys = torch::stable::new_empty(scores, {request.images, request.count},
                                           sizeof(Score) == 4 ? ScalarType::Int : ScalarType::Long);
    make_keys(score, all, request.has_no_candidates, keys.mutable_data_ptr<Key<Score>>(), stream);
    const auto [ranked, order] = stable_sort(keys);

    Suppression<Coordinate> s = {};
    s.images = request.images, s.count = request.count;
    s.threshold = request.threshold < 1 ? request.threshold : std::numeric_limits<double>::infinity();
    s.order = order.template const_data_ptr<int64_t>();
    s.boxes = memory.of<Coordinate>(4 * all);
    s.groups = request.groups ? memory.of<int64_t>(all) : nullptr;
    s.kinds = request.kinds;
    s.has_quota = request.quota.has_value();
    s.num_kinds = s.has_quota ? static_cast<int64_t>(request.quota->size()) : 0;
    s.left = memory.of<int32_t>(s.images * s.num_kinds);
    s.alive = memory.of<uint32_t>(s.images * s.padded() / kWarp);
    const int64_t at_once = images_at_once(s.images);
    s.bits = memory.of<uint64_t>(at_once * s.words() * s.window());
    s.kept = memory.of<int32_t>(at_once * kWindow);
    s.num_kept = memory.of<int32_t>(at_once);
    s.is_done = memory.zeros_of<int32_t>(s.images, stream);
    s.num_result = num_result;
    s.mask = mask, s.list = list;
    if (s.has_quota) fill_quotas(s, request.quota->data(), stream);
    arrange_boxes<Score>(s, ranked.template const_data_ptr<Key<Score>>(), request.has_no_candidates, box, request.groups,
                         stream);
    suppress(s, stream);
  });
}

Tensor kept_indices(const Tensor& boxes, const Tensor& scores, const int64_t* groups, double threshold,
                    std::optional<int64_t> max_keep) {
  const int64_t count = scores.numel();
  Tensor list = torch::stable::new_empty(scores, {count}, ScalarType::Long);
  if (count == 0 || max_keep.value_or(count) <= 0) return torch::stable::narrow(list, 0, 0, 0);
  std::optional<std::vector<int64_t>> quota;
  if (max_keep) quota = {std::min(*max_keep, count)};
  const OnDevice device(scores.get_device_index());
  Memory memory(scores);
  int64_t* const found = memory.zeros_of<int64_t>(1, device.stream());
  suppress_boxes(boxes, scores, {1, count, threshold, groups, nullptr, quota, false}, nullptr,
                 list.mutable_data_ptr<int64_t>(), found, memory, device.stream());
  return torch::stable::narrow(list, 0, 0, read_when_done(found, device.stream()));
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<int64_t> max_keep) {
  return kept_indices(boxes, scores, nullptr, iou_threshold, max_keep);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& groups, double iou_threshold,
                   std::optional<int64_t> max_keep) {
  const Tensor g = beside_scores("batched_nms: groups", groups, scores);
  return kept_indices(boxes, scores, g.const_data_ptr<int64_t>(), iou_threshold, max_keep);
}

Tensor nms_mask(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<Tensor> kinds,
                std::optional<std::vector<int64_t>> quota) {
  const OnDevice device(scores.get_device_index());
  const int64_t images = scores.size(0), count = scores.size(1);
  const Tensor k = kinds ? beside_scores("nms_mask: kinds", *kinds, scores) : scores;
  Tensor mask = torch::stable::new_empty(scores, scores.sizes(), ScalarType::Bool);
  if (images == 0 || count == 0) return mask;
  bool* const out = mask.mutable_data_ptr<bool>();
  set_to_zero(out, images * count, device.stream());
  if (quota)
    for (int64_t& wanted : *quota) wanted = std::min(wanted, count);
  Memory memory(scores);
  int64_t* const found = memory.zeros_of<int64_t>(images, device.stream());
  suppress_boxes(boxes, scores,
                 {images, count, iou_threshold, nullptr, kinds ? k.const_data_ptr<int64_t>() : nullptr, quota, true}, out,
                 nullptr, found, memory, device.stream());
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_mask", TORCH_BOX(&nms_mask));
}

}  // namespace detkit
