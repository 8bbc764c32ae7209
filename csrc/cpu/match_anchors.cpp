#include <algorithm>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "../math/box.h"

namespace detkit {
namespace {

enum LowQuality : int64_t { kOff = 0, kDetectron2 = 1, kDetectron = 2 };

constexpr int64_t kGrain = 256;  // anchors that are worth a thread
constexpr int64_t kIgnored = -1;

// Thresholds are rounded to the type of the IoU, as PyTorch does in a comparison with a number.
template <class T>
struct Rule {
  int64_t num_classes;
  T positive_iou, negative_iou;
  int64_t low_quality;

  // The label of an anchor, whose ground truth has a class; `rescued`: it is some ground truth's best.
  int64_t label(T best, bool rescued, int64_t gt_class) const {
    const bool background = best < negative_iou;
    if (best >= positive_iou || (rescued && !(background && low_quality == kDetectron))) return gt_class;
    return background ? num_classes : kIgnored;
  }
};

// One image: its anchors, and its real ground truth packed without padding.
template <class T>
struct Image {
  const T* anchors;
  const bool* valid;  // null: all
  int64_t count;
  std::vector<Box<T>> gt_boxes;
  std::vector<int64_t> gt_classes, gt_index;

  Image(const T* anchors_, const bool* valid_, int64_t count_, const T* boxes, const int64_t* classes, int64_t padded)
      : anchors(anchors_), valid(valid_), count(count_) {
    for (int64_t g = 0; g < padded; ++g) {
      if (classes[g] < 0) continue;
      gt_boxes.emplace_back(boxes + 4 * g);
      gt_classes.push_back(classes[g]);
      gt_index.push_back(g);
    }
  }

  bool is_valid(int64_t r) const { return !valid || valid[r]; }
};

// Writes each anchor's best IoU and the first ground truth that has it; returns each ground truth's best IoU. A maximum
// does not depend on the order, so neither does it on the threads.
template <class T>
std::vector<T> find_best(const Image<T>& image, T* best, int64_t* matched) {
  const size_t num_gt = image.gt_boxes.size();
  std::vector<T> highest(num_gt, T(0));
  std::mutex guard;
  torch::stable::parallel_for(0, image.count, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<T> local(num_gt, T(0));
    for (int64_t r = begin; r < end; ++r) {
      const Box<T> anchor(image.anchors + 4 * r);
      best[r] = T(-1);
      for (size_t g = 0; g < num_gt && image.is_valid(r); ++g) {
        const T overlap = iou(anchor, image.gt_boxes[g]);
        if (overlap > best[r]) best[r] = overlap, matched[r] = static_cast<int64_t>(g);
        local[g] = std::max(local[g], overlap);
      }
    }
    const std::lock_guard<std::mutex> lock(guard);
    for (size_t g = 0; g < num_gt; ++g) highest[g] = std::max(highest[g], local[g]);
  });
  return highest;
}

template <class T>
bool is_best_of_some(const Image<T>& image, int64_t r, const std::vector<T>& highest) {
  const Box<T> anchor(image.anchors + 4 * r);
  for (size_t g = 0; g < highest.size(); ++g)
    if (highest[g] > 0 && iou(anchor, image.gt_boxes[g]) == highest[g]) return true;
  return false;
}

// `matched` holds indices into the packed ground truth on entry, into the padded one on return.
template <class T>
void label_anchors(const Image<T>& image, const Rule<T>& rule, const std::vector<T>& highest, const T* best,
                   int64_t* labels, int64_t* matched) {
  torch::stable::parallel_for(0, image.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (!image.is_valid(r) || image.gt_boxes.empty()) {
        labels[r] = image.is_valid(r) ? rule.num_classes : kIgnored;
        matched[r] = 0;
        continue;
      }
      const bool may_be_rescued = rule.low_quality != kOff && best[r] > 0 && best[r] < rule.positive_iou;
      const bool rescued = may_be_rescued && is_best_of_some(image, r, highest);
      labels[r] = rule.label(best[r], rescued, image.gt_classes[matched[r]]);
      matched[r] = image.gt_index[matched[r]];
    }
  });
}

void check_classes(const int64_t* classes, int64_t count, int64_t num_classes) {
  const auto* wrong = std::find_if(classes, classes + count, [=](int64_t c) { return c >= num_classes; });
  STD_TORCH_CHECK(wrong == classes + count, "match_anchors: the class ", *wrong, " of the ground truth is not in 0..",
                  num_classes - 1, " (negative: padding)");
}

ScalarType common_type(const Tensor& a, const Tensor& b) {
  const bool wide = a.scalar_type() == ScalarType::Double || b.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_classes,
                                         std::optional<Tensor> valid, int64_t num_classes, double positive_iou,
                                         double negative_iou, int64_t low_quality) {
  const ScalarType dtype = common_type(anchors, gt_boxes);
  const Tensor a = contiguous_as(anchors, dtype), b = contiguous_as(gt_boxes, dtype);
  const Tensor c = contiguous_as(gt_classes, ScalarType::Long);
  const Tensor v = valid ? torch::stable::contiguous(*valid) : c;
  const int64_t images = b.size(0), padded = b.size(1), count = a.size(a.dim() - 2);
  const int64_t stride = a.dim() == 3 ? 4 * count : 0;
  check_classes(c.const_data_ptr<int64_t>(), c.numel(), num_classes);
  Tensor labels = torch::stable::new_empty(c, {images, count}), matched = torch::stable::new_empty(c, {images, count});
  dispatch_floating(dtype, [&](auto zero) {
    using T = typename Accumulate<decltype(zero)>::type;
    const Rule<T> rule{num_classes, static_cast<T>(positive_iou), static_cast<T>(negative_iou), low_quality};
    std::vector<T> best(count);
    for (int64_t n = 0; n < images; ++n) {
      const Image<T> image(a.const_data_ptr<T>() + n * stride, valid ? v.const_data_ptr<bool>() + n * count : nullptr,
                           count, b.const_data_ptr<T>() + 4 * n * padded, c.const_data_ptr<int64_t>() + n * padded,
                           padded);
      int64_t* index = matched.mutable_data_ptr<int64_t>() + n * count;
      const std::vector<T> highest = find_best(image, best.data(), index);
      label_anchors(image, rule, highest, best.data(), labels.mutable_data_ptr<int64_t>() + n * count, index);
    }
  });
  return {labels, matched};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(detkit, CPU, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace detkit
