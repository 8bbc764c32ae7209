#include <optional>
#include <tuple>

#include "../common/matching.h"
#include "match_anchors.cuh"

namespace detkit {
namespace {

std::tuple<Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_classes,
                                         std::optional<Tensor> valid, int64_t num_classes, double positive_iou,
                                         double negative_iou, int64_t low_quality) {
  const OnDevice device(gt_classes.get_device_index());
  MatchingTensors tensors(anchors, gt_boxes, gt_classes, valid);
  dispatch_floating(tensors.dtype, [&](auto zero) {
    using T = typename Accumulate<decltype(zero)>::type;
    const int64_t bytes = tensors.images() * tensors.truths() * static_cast<int64_t>(sizeof(Bits<T>));
    Tensor peaks = torch::stable::new_empty(tensors.gt_classes, {bytes}, ScalarType::Byte);
    Matching<T> m = {};
    m.images = tensors.images(), m.count = tensors.count(), m.truths = tensors.truths();
    m.anchors = tensors.anchors.const_data_ptr<T>();
    m.by_image = tensors.by_image();
    m.valid = tensors.valid_data();
    m.gt_boxes = tensors.gt_boxes.const_data_ptr<T>();
    m.is_aligned = is_aligned(m.anchors) && is_aligned(m.gt_boxes);
    m.gt_classes = tensors.gt_classes.const_data_ptr<int64_t>();
    m.rule = {num_classes, static_cast<T>(positive_iou), static_cast<T>(negative_iou), low_quality};
    m.peaks = static_cast<Bits<T>*>(peaks.mutable_data_ptr());
    m.labels = tensors.labels.mutable_data_ptr<int64_t>();
    m.matched = tensors.matched.mutable_data_ptr<int64_t>();
    match(m, device.stream());
  });
  return {tensors.labels, tensors.matched};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CUDA, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace detkit
