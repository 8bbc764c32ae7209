// Runs every kernel of csrc/cuda on the emulated device against plain loops over the definitions, as a program of its
// own, to be built with sanitizers. Memory has the exact sizes that the kernels are told. Prints what fails and
// returns 1.
//
//   kernels PART ...   of losses, suppression, matching; large (an array with places beyond 31 bits), rules (what the
//                      emulated device must not let pass)
#include <sys/mman.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/match_anchors.cuh"
#include "../../csrc/cuda/nms.cuh"
#include "../../csrc/cuda/sigmoid_loss.cuh"
#include "../../csrc/math/focal.h"

namespace {

using namespace detkit;
using torch::headeronly::BFloat16;

int failures = 0;

void expect(bool holds, const char* what, double a = 0, double b = 0) {
  if (holds) return;
  if (++failures < 20) std::printf("%s (%.17g, %.17g)\n", what, a, b);
}

using Random = std::mt19937_64;

double uniform(Random& random, double low, double high) {
  return low + (high - low) * static_cast<double>(random() >> 11) * 0x1p-53;
}

int64_t below(Random& random, int64_t most) { return static_cast<int64_t>(random() % static_cast<uint64_t>(most)); }

// ---------------------------------------------------------------------------------------------------------------------
// Losses
// ---------------------------------------------------------------------------------------------------------------------

using ExactFocal = FocalLoss<double, PowerAny<double>>;

template <class Scalar>
struct Case {
  int64_t rows, classes;
  std::vector<Scalar> logits;
  std::vector<int64_t> labels;

  Case(Random& random, int64_t rows_, int64_t classes_, size_t offset)
      : rows(rows_), classes(classes_), logits(static_cast<size_t>(rows * classes) + offset), labels(rows) {
    for (auto& logit : logits) logit = static_cast<Scalar>(static_cast<float>(uniform(random, -6, 6)));
    for (auto& label : labels) label = offset == 0 && random() % 4 ? classes : below(random, classes + 2) - 1;
    first = logits.data() + offset;
  }

  const Scalar* first;

  LossRows<Scalar> as_rows() const { return {first, labels.data(), rows, classes}; }

  // Calls f(index, row, side or 0 where ignored, logit in double).
  template <class F>
  void each(const F& f) const {
    for (int64_t i = 0; i < rows * classes; ++i) {
      const int64_t row = i / classes, label = labels[row];
      const double side = label == -1 ? 0 : label == i % classes ? 1 : -1;
      f(i, row, side, static_cast<double>(static_cast<float>(first[i])));
    }
  }
};

template <class Scalar, class Power>
void losses(Random& random, int64_t rows, int64_t classes, size_t offset, const Power& power) {
  const Case<Scalar> c(random, rows, classes, offset);
  const FocalLoss<float, Power> shape{power};
  const ExactFocal exact{{power.gamma}};
  const Weights<float> weights{0.25f, 0.75f};
  const size_t count = static_cast<size_t>(rows * classes);
  std::vector<double> partial(static_cast<size_t>(loss_tiles(c.as_rows())));
  std::vector<float> total(1), of_rows(rows), grad_of_rows(rows);
  std::vector<Scalar> of_each(count), slope(count), slope_of_rows(count), slope_of_each(count), grad_of_each(count);
  const float grad_of_sum = -0.7f;
  for (auto& g : grad_of_rows) g = static_cast<float>(uniform(random, -2, 2));
  for (auto& g : grad_of_each) g = static_cast<Scalar>(static_cast<float>(uniform(random, -2, 2)));
  const auto all = c.as_rows();
  sum_loss(shape, all, weights, partial.data(), total.data(), {});
  sum_loss_of_rows(shape, all, weights, of_rows.data(), {});
  write_loss(shape, all, weights, of_each.data(), {});
  write_loss_gradient<GradientOfSum<float, Scalar>>(shape, all, weights, &grad_of_sum, slope.data(), {});
  write_loss_gradient<GradientOfRows<float, Scalar>>(shape, all, weights, grad_of_rows.data(), slope_of_rows.data(),
                                                     {});
  write_loss_gradient<GradientOfEach<float, Scalar>>(shape, all, weights, grad_of_each.data(), slope_of_each.data(),
                                                     {});
  const double rounding = sizeof(Scalar) == 4 ? 1e-5 : 1e-2;
  double sum = 0;
  std::vector<double> sums(rows);
  c.each([&](int64_t i, int64_t row, double side, double x) {
    const double weight = side == 0 ? 0 : side > 0 ? 0.25 : 0.75, value = weight * exact.value(side * x);
    const double derivative = side * weight * exact.derivative(side * x);
    sum += value, sums[row] += value;
    const auto expect_near = [&](Scalar got, double want, const char* what) {
      expect(std::abs(static_cast<float>(got) - want) <= rounding * (1 + std::abs(want)), what, want);
    };
    expect_near(of_each[i], value, "a loss");
    expect_near(slope[i], derivative * grad_of_sum, "a slope of the sum");
    expect_near(slope_of_rows[i], derivative * grad_of_rows[row], "a slope of a row's sum");
    expect_near(slope_of_each[i], derivative * static_cast<float>(grad_of_each[i]), "a slope of each");
  });
  expect(std::abs(total[0] - sum) <= 1e-5 * (1 + sum), "the sum", total[0], sum);
  for (int64_t row = 0; row < rows; ++row)
    expect(std::abs(of_rows[row] - sums[row]) <= 1e-5 * (1 + sums[row]), "the sum of a row", of_rows[row], sums[row]);
}

void all_losses() {
  Random random(1);
  const std::vector<std::pair<int64_t, int64_t>> shapes{{0, 3},   {1, 1},    {5, 4},   {3, 3},
                                                        {333, 7}, {120, 80}, {77, 91}, {2, 5000}};
  for (const auto& [rows, classes] : shapes)
    for (const size_t offset : {0, 1}) {
      losses<float>(random, rows, classes, offset, PowerTwo<float>());
      losses<BFloat16>(random, rows, classes, offset, PowerAtRunTime<float>{0.5});
    }
}

// The last tiles of more logits than 31 bits count, in memory of which only they are touched.
void sum_beyond_31_bits() {
  constexpr int64_t kClasses = 80, kRows = (int64_t{1} << 31) / kClasses + 1000;
  const auto reserved = [](size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    expect(memory != MAP_FAILED, "no room for large arrays");
    return memory;
  };
  auto* const logits = static_cast<float*>(reserved(kRows * kClasses * sizeof(float)));
  auto* const slopes = static_cast<float*>(reserved(kRows * kClasses * sizeof(float)));
  auto* const labels = static_cast<int64_t*>(reserved(kRows * sizeof(int64_t)));
  const LossRows<float> rows{logits, labels, kRows, kClasses};
  const int64_t tiles = loss_tiles(rows), first = (tiles - 2) * kLossTile<float>;
  for (int64_t i = first; i < rows.count(); ++i) logits[i] = static_cast<float>(i % 13 - 6);
  for (int64_t row = first / kClasses; row < kRows; ++row) labels[row] = row % (kClasses + 2) - 1;
  std::vector<double> partial(tiles);
  const FocalLoss<float, PowerTwo<float>> shape{};
  emulation::skip_blocks(tiles - 2);
  launch(loss_tile_sums<float, FocalLoss<float, PowerTwo<float>>, float>, tiles, kLossThreads, {}, shape, rows,
         Divider(kClasses), Weights<float>{1, 1}, true, partial.data());
  emulation::skip_blocks(tiles - 2);
  const float one = 1;
  write_loss_gradient<GradientOfSum<float, float>>(shape, rows, Weights<float>{1, 1}, &one, slopes, {});
  double sum = 0;
  for (int64_t i = first; i < rows.count(); ++i) {
    const int64_t label = labels[i / kClasses];
    const double side = label == -1 ? 0 : label == i % kClasses ? 1 : -1;
    const ExactFocal exact{{2}};
    sum += side == 0 ? 0 : exact.value(side * logits[i]);
    expect(std::abs(slopes[i] - side * exact.derivative(side * logits[i])) < 1e-5, "a slope far out", slopes[i]);
  }
  expect(std::abs(partial[tiles - 2] + partial[tiles - 1] - sum) < 1e-5 * sum, "the sum of the last tiles", sum);
  munmap(logits, kRows * kClasses * sizeof(float));
  munmap(slopes, kRows * kClasses * sizeof(float));
  munmap(labels, kRows * sizeof(int64_t));
}

void divisions() {
  Random random(4);
  for (int i = 0; i < 200000; ++i) {
    const int64_t divisor = 1 + static_cast<int64_t>(random() >> (30 + random() % 34));
    const Divider by(divisor);
    const int64_t number = static_cast<int64_t>(random() >> (1 + random() % 63)), multiple = number / divisor * divisor;
    for (const int64_t n : {number, multiple, std::max<int64_t>(0, multiple - 1), (int64_t{1} << 31) - 1})
      expect(by(n) == n / divisor, "a quotient", static_cast<double>(n), static_cast<double>(divisor));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Suppression
// ---------------------------------------------------------------------------------------------------------------------

struct Scene {
  int64_t images, count;
  std::vector<float> boxes, scores;
  std::vector<int64_t> groups, kinds, quota;
  double threshold;
  bool skips_minus_infinity;  // a score of -inf is none
};

Scene draw_scene(Random& random, int64_t images, int64_t count, double threshold, double extent) {
  Scene s{images, count, {}, {}, {}, {}, {5, count}, threshold, random() % 2 == 0};
  for (int64_t i = 0; i < images * count; ++i) {
    const double x = uniform(random, 0, extent), y = uniform(random, 0, extent);
    for (const double side : {x, y, x + uniform(random, 1, 12), y + uniform(random, 1, 12)})
      s.boxes.push_back(static_cast<float>(side));
    const auto odd = random() % 40;
    s.scores.push_back(odd == 0   ? -std::numeric_limits<float>::infinity()
                       : odd == 1 ? std::numeric_limits<float>::quiet_NaN()
                                  : static_cast<float>(below(random, 50)) / 50);
    s.groups.push_back(below(random, 3));
    s.kinds.push_back(below(random, 3));
  }
  return s;
}

// The indices of an image's boxes in order; those that are no candidates are left out.
std::vector<int64_t> ranked(const Scene& s, int64_t image) {
  std::vector<int64_t> order;
  const float* const scores = s.scores.data() + image * s.count;
  for (int64_t i = 0; i < s.count; ++i)
    if (!s.skips_minus_infinity || scores[i] != -std::numeric_limits<float>::infinity()) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const bool finite_a = std::isfinite(scores[a]), finite_b = std::isfinite(scores[b]);
    return finite_a != finite_b ? finite_a : finite_a && scores[a] > scores[b];
  });
  return order;
}

std::vector<int64_t> greedy(const Scene& s, int64_t image, bool with_groups) {
  const auto box = [&](int64_t i) {
    const float* const c = s.boxes.data() + 4 * (image * s.count + i);
    const double xyxy[] = {c[0], c[1], c[2], c[3]};
    return Box<double>(xyxy);
  };
  std::vector<int64_t> kept;
  for (const int64_t i : ranked(s, image)) {
    bool is_kept = true;
    for (const int64_t k : kept)
      is_kept = is_kept && !((!with_groups || s.groups[image * s.count + i] == s.groups[image * s.count + k]) &&
                             suppresses(box(k), box(i), s.threshold));
    if (is_kept) kept.push_back(i);
  }
  return kept;
}

std::vector<int64_t> cut_to_quotas(const Scene& s, int64_t image, const std::vector<int64_t>& kept, bool with_kinds) {
  auto left = s.quota;
  std::vector<int64_t> counted;
  for (const int64_t i : kept) {
    const auto kind = static_cast<size_t>(with_kinds ? s.kinds[image * s.count + i] : 0);
    if (kind < left.size() && left[kind]-- > 0) counted.push_back(i);
  }
  return counted;
}

void suppression(const Scene& s, bool with_groups, bool with_quota, bool as_list) {
  const auto all = static_cast<size_t>(s.images * s.count);
  std::vector<int32_t> keys(all), ranked_keys;
  std::vector<int64_t> order;
  make_keys(s.scores.data(), s.images * s.count, s.skips_minus_infinity, keys.data(), {});
  for (int64_t image = 0; image < s.images; ++image) {
    std::vector<int64_t> of_image(s.count);
    std::iota(of_image.begin(), of_image.end(), 0);
    const int32_t* const key = keys.data() + image * s.count;
    std::stable_sort(of_image.begin(), of_image.end(), [=](int64_t a, int64_t b) { return key[a] < key[b]; });
    for (const int64_t i : of_image) ranked_keys.push_back(key[i]);
    order.insert(order.end(), of_image.begin(), of_image.end());
  }
  Suppression<float> k(s.images, s.count, s.threshold);
  k.order = order.data();
  k.has_quota = with_quota, k.num_kinds = with_quota ? static_cast<int64_t>(s.quota.size()) : 0;
  std::vector<Corners<float>> boxes(all);  // aligned as memory of a device is
  std::vector<int64_t> groups(all), list(s.count), num_result(s.images), first(s.images), next(s.images),
      is_done(s.images);
  std::vector<int32_t> left(s.images * k.num_kinds), kept(s.images * kWindow), num_kept(s.images);
  std::vector<int32_t> places(s.images * kWindow), num_places(s.images);
  std::vector<uint32_t> alive(s.images * k.padded() / kWarp);
  std::vector<uint64_t> bits(s.images * k.words() * k.window());
  const auto mask = std::make_unique<bool[]>(all);
  k.boxes = boxes.data()->xyxy, k.groups = with_groups ? groups.data() : nullptr;
  k.kinds = with_quota && !as_list ? s.kinds.data() : nullptr;
  k.left = left.data(), k.alive = alive.data(), k.bits = bits.data(), k.kept = kept.data(),
  k.num_kept = num_kept.data();
  k.is_done = is_done.data(), k.num_result = num_result.data(), k.first = first.data(), k.next = next.data();
  k.places = places.data(), k.num_places = num_places.data();
  k.mask = as_list ? nullptr : mask.get(), k.list = as_list ? list.data() : nullptr;
  if (with_quota) fill_quotas(k, s.quota.data(), {});
  arrange_boxes<float>(k, ranked_keys.data(), s.skips_minus_infinity, s.boxes.data(),
                       with_groups ? s.groups.data() : nullptr, boxes.data()->xyxy, groups.data(), {});
  suppress(k, {});
  for (int64_t image = 0; image < s.images; ++image) {
    auto expected = greedy(s, image, with_groups);
    if (with_quota) expected = cut_to_quotas(s, image, expected, k.kinds);
    std::vector<int64_t> got;
    if (as_list) {
      got.assign(list.begin(), list.begin() + num_result[0]);
    } else {
      for (int64_t i = 0; i < s.count; ++i)
        if (mask[image * s.count + i]) got.push_back(i);
      std::sort(expected.begin(), expected.end());
    }
    expect(got == expected, "the boxes kept", static_cast<double>(got.size()), static_cast<double>(expected.size()));
    expect(num_result[image] == static_cast<int64_t>(expected.size()), "their number");
  }
}

void all_suppressions() {
  Random random(2);
  for (const int64_t count : {1, 63, 64, 65, 300, 2047, 2049, 9000})
    for (const double threshold : {0.3, 0.0, 0.7}) {
      if (count > 3000 && threshold != 0.3) continue;
      const Scene one = draw_scene(random, 1, count, threshold, 2 * std::sqrt(static_cast<double>(count)));
      suppression(one, count % 2, false, true);
      suppression(one, count % 2, true, true);
      if (count > 2100) continue;
      const Scene three = draw_scene(random, 3, count, threshold, 40);
      suppression(three, false, false, false);
      suppression(three, false, true, false);
      suppression(three, true, true, false);
    }
  // All but a few die at once, so that the next window is far away.
  Scene many = draw_scene(random, 1, 22000, 0.5, 1);
  for (int64_t i = 0; i < 4 * many.count; ++i)
    many.boxes[i] = i < 4 * 21000 ? static_cast<float>(i % 4) : many.boxes[i];
  for (int64_t i = 0; i < many.count; ++i) many.scores[i] = static_cast<float>(many.count - i);
  suppression(many, false, false, true);
  // Every box suppresses only the next: the longest chain there is.
  Scene chain = draw_scene(random, 1, 200, 0.4, 1);
  for (int64_t i = 0; i < 200; ++i) {
    const float x = 4.0f * static_cast<float>(i);
    std::copy_n(std::vector<float>{x, 0, x + 10, 1}.begin(), 4, chain.boxes.begin() + 4 * i);
    chain.scores[i] = 1 - static_cast<float>(i) / 200;
  }
  suppression(chain, false, false, true);
}

// ---------------------------------------------------------------------------------------------------------------------
// Matching
// ---------------------------------------------------------------------------------------------------------------------

void matching(Random& random, int64_t images, int64_t count, int64_t truths, int64_t low_quality, bool with_valid) {
  std::vector<float> anchors, gt_boxes;
  const auto draw_box = [&](std::vector<float>& into) {
    const double x = uniform(random, 0, 80), y = uniform(random, 0, 80);
    for (const double c : {x, y, x + uniform(random, 4, 30), y + uniform(random, 4, 30)}) into.push_back(std::round(c));
  };
  for (int64_t i = 0; i < images * count; ++i) draw_box(anchors);
  for (int64_t i = 0; i < images * truths; ++i) draw_box(gt_boxes);
  std::vector<int64_t> classes(images * truths), labels(images * count), matched(images * count);
  for (auto& c : classes) c = below(random, 4) - 1;
  const auto valid = std::make_unique<bool[]>(static_cast<size_t>(images * count));
  for (int64_t i = 0; i < images * count; ++i) valid[i] = random() % 8 != 0;
  std::vector<unsigned> peaks(images * truths);
  Matching<float> m = {};
  m.images = images, m.count = count, m.truths = truths, m.anchors = anchors.data(), m.by_image = true;
  m.valid = with_valid ? valid.get() : nullptr, m.gt_boxes = gt_boxes.data(), m.gt_classes = classes.data();
  m.is_aligned = is_aligned(m.anchors) && is_aligned(m.gt_boxes);
  m.rule = {3, 0.5f, 0.4f, low_quality}, m.peaks = peaks.data(), m.labels = labels.data(), m.matched = matched.data();
  match(m, {});
  for (int64_t n = 0; n < images; ++n) {
    const auto is_valid = [&](int64_t a) { return !with_valid || valid[n * count + a]; };
    const auto overlap = [&](int64_t a, int64_t g) {
      return iou(Box<float>(&anchors[4 * (n * count + a)]), Box<float>(&gt_boxes[4 * (n * truths + g)]));
    };
    std::vector<float> peak(truths);
    for (int64_t g = 0; g < truths; ++g)
      for (int64_t a = 0; a < count; ++a)
        if (is_valid(a)) peak[g] = std::max(peak[g], overlap(a, g));
    for (int64_t a = 0; a < count; ++a) {
      float most = -1;
      int64_t best = 0, label = 3;
      bool is_rescued = false;
      for (int64_t g = 0; g < truths; ++g) {
        if (classes[n * truths + g] < 0) continue;
        if (overlap(a, g) > most) most = overlap(a, g), best = g;
        is_rescued |= peak[g] > 0 && overlap(a, g) == peak[g];
      }
      if (most >= 0.4f) label = -1;
      if (low_quality == kOff || (low_quality == kDetectron && most < 0.4f)) is_rescued = false;
      if (most >= 0.5f || is_rescued) label = classes[n * truths + best];
      if (!is_valid(a)) label = -1, best = 0;
      expect(labels[n * count + a] == label, "a label", static_cast<double>(labels[n * count + a]),
             static_cast<double>(label));
      expect(matched[n * count + a] == best, "a match", static_cast<double>(matched[n * count + a]),
             static_cast<double>(best));
    }
  }
}

void all_matchings() {
  Random random(3);
  for (const int64_t truths : {0, 1, 31, 70})
    for (const int64_t low_quality : {kOff, kDetectron2, kDetectron})
      for (const int64_t count : {1, 257, 600}) matching(random, 2, count, truths, low_quality, truths % 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// The emulated device itself: what it must not let pass
// ---------------------------------------------------------------------------------------------------------------------

void some_leave(int*) {
  if (threadIdx.x < 7) return;
  __syncthreads();
}

void half_a_warp(int* out) {
  if (lane() < 16) out[0] = __shfl_xor_sync(kAllLanes, 1, 1);
}

void wrong_mask(int* out) { out[0] = __shfl_xor_sync(0xffffu, 1, 1); }

void wrong_lane(int* out) { out[0] = __shfl_xor_sync(kAllLanes, 1, 32); }

void uneven_memory(int* out) {
  if (threadIdx.x == 0) {
    DETKIT_SHARED(small, Array<int, 4>);
    out[0] = small[0];
  } else {
    DETKIT_SHARED(large, Array<int, 8>);
    out[0] = large[0];
  }
}

void garbage_first(int* out) {
  DETKIT_SHARED(memory, Array<int, 4>);
  if (threadIdx.x == 0) out[0] = memory[3], memory[3] = 1;
}

void the_rules() {
  int out = 0;
  for (void (*kernel)(int*) : {some_leave, half_a_warp, wrong_mask, wrong_lane, uneven_memory}) {
    bool is_caught = false;
    try {
      launch(kernel, 2, 64, {}, &out);
    } catch (const std::runtime_error&) {
      is_caught = true;
    }
    expect(is_caught, "a broken rule passes");
  }
  launch(garbage_first, 2, 64, {}, &out);
  expect(out != 0 && out != 1, "memory of a block holds something of its own", out);
}

}  // namespace

int main(int count, char** parts) {
  for (const auto& part : std::vector<std::string>(parts + 1, parts + count)) {
    expect(part == "losses" || part == "suppression" || part == "matching" || part == "large" || part == "rules",
           "an unknown part");
    if (part == "losses") all_losses(), divisions();
    if (part == "large") sum_beyond_31_bits();
    if (part == "suppression") all_suppressions();
    if (part == "matching") all_matchings();
    if (part == "rules") the_rules();
  }
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
