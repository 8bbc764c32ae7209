// What suppression reads on every device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "tensor.h"

namespace detkit {

// Calls f(boxes, scores) with pointers to float or double, to which the tensors are converted without loss.
template <class F>
void with_exact(const Tensor& boxes, const Tensor& scores, const F& f) {
  const Tensor b = contiguous_as(boxes, accumulate_type(boxes.scalar_type()));
  const Tensor s = contiguous_as(scores, accumulate_type(scores.scalar_type()));
  check_same_device("nms", b, s);
  STD_TORCH_CHECK(s.numel() < int64_t{1} << 31, "nms: more than 2^31 boxes");
  STD_TORCH_CHECK(b.numel() == 4 * s.numel(), "nms: boxes must have the shape of scores and four sides");
  dispatch_floating(b.scalar_type(), [&](auto coordinate) {
    dispatch_floating(s.scalar_type(), [&](auto score) {
      using Coordinate = typename Accumulate<decltype(coordinate)>::type;
      using Score = typename Accumulate<decltype(score)>::type;
      f(b.const_data_ptr<Coordinate>(), s.const_data_ptr<Score>());
    });
  });
}

// Quotas as numbers of boxes, of which there are `count`: a larger one wants them all, one below 0 none.
inline std::vector<int64_t> bounded(std::vector<int64_t> quota, int64_t count) {
  for (int64_t& wanted : quota) wanted = std::clamp<int64_t>(wanted, 0, count);
  return quota;
}

// Integers beside the scores, such as groups and kinds (`what` names them), as int64; or none.
class PerBox {
 public:
  PerBox(const char* what, const std::optional<Tensor>& values, const Tensor& scores) {
    if (!values) return;
    STD_TORCH_CHECK(values->numel() == scores.numel(), what, " must have the shape of scores");
    check_same_device(what, *values, scores);
    values_ = contiguous_as(*values, ScalarType::Long);
  }

  // Those from an index on; null for none.
  const int64_t* from(int64_t index) const { return values_ ? values_->const_data_ptr<int64_t>() + index : nullptr; }

 private:
  std::optional<Tensor> values_;
};

}  // namespace detkit
