// The tensors of match_anchors on every device, contiguous and of one type, with its outputs. The Python face has
// checked their shapes; a graph that calls the operator itself has not.
#pragma once

#include <cstdint>
#include <optional>

#include "tensor.h"

namespace detkit {

struct MatchingTensors {
  ScalarType dtype;  // that overlaps are computed in
  Tensor anchors, gt_boxes, gt_classes;
  std::optional<Tensor> valid;
  Tensor labels, matched;

  MatchingTensors(const Tensor& anchors_, const Tensor& gt_boxes_, const Tensor& gt_classes_,
                  const std::optional<Tensor>& valid_)
      : dtype(common_type(anchors_, gt_boxes_)),
        anchors(contiguous_as(anchors_, dtype)),
        gt_boxes(contiguous_as(gt_boxes_, dtype)),
        gt_classes(contiguous_as(gt_classes_, ScalarType::Long)),
        valid(valid_ ? std::optional<Tensor>(torch::stable::contiguous(*valid_)) : std::nullopt),
        labels(torch::stable::new_empty(gt_classes, {images(), count()})),
        matched(torch::stable::new_empty(gt_classes, {images(), count()})) {
    STD_TORCH_CHECK(gt_boxes.numel() == 4 * gt_classes.numel() && (!by_image() || anchors.size(0) == images()) &&
                        (!valid || valid->numel() == images() * count()),
                    "match_anchors: the shapes of the inputs do not fit");
    for (const Tensor& other : {anchors, gt_boxes, valid.value_or(anchors)})
      check_same_device("match_anchors", gt_classes, other);
  }

  int64_t images() const { return gt_boxes.size(0); }
  int64_t truths() const { return gt_boxes.size(1); }
  int64_t count() const { return anchors.size(anchors.dim() - 2); }
  bool by_image() const { return anchors.dim() == 3; }
  const bool* valid_data() const { return valid ? valid->const_data_ptr<bool>() : nullptr; }

 private:
  static ScalarType common_type(const Tensor& a, const Tensor& b) {
    const bool wide = a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
    return wide ? ScalarType::Double : ScalarType::Float;
  }
};

}  // namespace detkit
