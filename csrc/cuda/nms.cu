#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
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
  bool skips_minus_infinity;
};

// Arrays of the device in one piece of memory, which lives as long as their kernels are being started: what is freed
// then is used again only after them, for both are in the order of the stream.
class Workspace {
 public:
  // Lets `place` point to an array, once memory is there.
  template <class T>
  void add(T*& place, int64_t count) {
    arrays_.push_back({reinterpret_cast<void**>(&place), bytes_});
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  }

  void allocate(const Tensor& like) {
    held_ = torch::stable::new_empty(like, {bytes_}, ScalarType::Byte);
    auto* const memory = static_cast<char*>(held_->mutable_data_ptr());
    for (const auto& [place, offset] : arrays_) *place = memory + offset;
  }

 private:
  static constexpr int64_t kAlignment = 256;
  std::vector<std::pair<void**, int64_t>> arrays_;
  int64_t bytes_ = 0;
  std::optional<Tensor> held_;
};

// Suppresses, into a mask [images, count] of zeros; or into a list [count], whose length it then waits for and returns.
int64_t suppress_boxes(const Tensor& boxes, const Tensor& scores, const Request& request, bool* mask, int64_t* list,
                       Stream stream) {
  int64_t length = 0;
  with_exact(boxes, scores, [&](const auto* box, const auto* score) {
    using Coordinate = std::decay_t<decltype(*box)>;
    using Score = std::decay_t<decltype(*score)>;
    const int64_t all = request.images * request.count;
    Tensor keys = torch::stable::new_empty(scores, {request.images, request.count},
                                           sizeof(Score) == 4 ? ScalarType::Int : ScalarType::Long);
    make_keys(score, all, request.skips_minus_infinity, keys.mutable_data_ptr<Key<Score>>(), stream);
    const auto [ranked, order] = stable_sort(keys);

    Suppression<Coordinate> s(request.images, request.count, request.threshold);
    s.order = order.template const_data_ptr<int64_t>();
    s.kinds = request.kinds;
    s.has_quota = request.quota.has_value();
    s.num_kinds = s.has_quota ? static_cast<int64_t>(request.quota->size()) : 0;
    s.mask = mask, s.list = list;
    const int64_t at_once = images_at_once(s.images);
    Workspace workspace;
    Coordinate* ranked_boxes = nullptr;
    int64_t* ranked_groups = nullptr;
    workspace.add(ranked_boxes, 4 * all);
    if (request.groups) workspace.add(ranked_groups, all);
    workspace.add(s.left, s.images * s.num_kinds);
    workspace.add(s.alive, s.images * s.padded() / kWarp);
    workspace.add(s.bits, at_once * s.words() * s.window());
    for (int32_t** array : {&s.places, &s.kept}) workspace.add(*array, at_once * kWindow);
    for (int32_t** array : {&s.num_places, &s.num_kept}) workspace.add(*array, at_once);
    for (int64_t** array : {&s.first, &s.next, &s.is_done, &s.num_result}) workspace.add(*array, at_once);
    workspace.allocate(scores);
    s.boxes = ranked_boxes, s.groups = ranked_groups;
    if (s.has_quota) fill_quotas(s, request.quota->data(), stream);
    arrange_boxes<Score>(s, ranked.template const_data_ptr<Key<Score>>(), request.skips_minus_infinity, box,
                         request.groups, ranked_boxes, ranked_groups, stream);
    suppress(s, stream);
    if (list) length = read_when_done(s.num_result, stream);
  });
  return length;
}

Tensor kept_indices(const Tensor& boxes, const Tensor& scores, const int64_t* groups, double threshold,
                    std::optional<int64_t> max_keep) {
  const int64_t count = scores.numel(), most = std::clamp<int64_t>(max_keep.value_or(count), 0, count);
  const OnDevice device(scores.get_device_index());
  Tensor list = torch::stable::new_empty(scores, {most}, ScalarType::Long);
  if (most == 0) return list;
  std::optional<std::vector<int64_t>> quota;
  if (max_keep) quota = {most};
  const int64_t length = suppress_boxes(boxes, scores, {1, count, threshold, groups, nullptr, quota, false}, nullptr,
                                        list.mutable_data_ptr<int64_t>(), device.stream());
  const Tensor found = torch::stable::narrow(list, 0, 0, length);
  return 2 * length < most ? torch::stable::clone(found) : found;  // hold no memory of many boxes for a few indices
}

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<int64_t> max_keep) {
  return kept_indices(boxes, scores, nullptr, iou_threshold, max_keep);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& groups, double iou_threshold,
                   std::optional<int64_t> max_keep) {
  const OnDevice device(scores.get_device_index());
  return kept_indices(boxes, scores, PerBox("batched_nms: groups", groups, scores).from(0), iou_threshold, max_keep);
}

Tensor nms_mask(const Tensor& boxes, const Tensor& scores, double iou_threshold, std::optional<Tensor> groups,
                std::optional<Tensor> kinds, std::optional<std::vector<int64_t>> quota) {
  const OnDevice device(scores.get_device_index());
  const int64_t images = scores.size(0), count = scores.size(1);
  const PerBox group("nms_mask: groups", groups, scores), kind("nms_mask: kinds", kinds, scores);
  Tensor mask = torch::stable::new_empty(scores, scores.sizes(), ScalarType::Bool);
  if (images == 0 || count == 0) return mask;
  bool* const out = mask.mutable_data_ptr<bool>();
  set_to_zero(out, images * count, device.stream());
  if (quota) quota = bounded(*quota, count);
  suppress_boxes(boxes, scores, {images, count, iou_threshold, group.from(0), kind.from(0), quota, true}, out, nullptr,
                 device.stream());
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_mask", TORCH_BOX(&nms_mask));
}

}  // namespace detkit
