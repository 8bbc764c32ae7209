// Checks the torch-free headers of csrc/math by a plain program; prints what fails and returns the number of failures.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>

#include "../../csrc/math/box.h"
#include "../../csrc/math/focal.h"
#include "../../csrc/math/focal_star.h"
#include "../../csrc/math/hinge.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, double a = 0, double b = 0) {
  if (holds) return;
  std::printf("%s (%.17g, %.17g)\n", what, a, b);
  ++failures;
}

template <class Loss>
void derivative_is_the_slope_of_the_value(const Loss& loss, const char* what) {
  for (double z = -30.003; z <= 30; z += 0.37) {
    const double h = 1e-5, slope = (loss.value(z + h) - loss.value(z - h)) / (2 * h);
    expect(std::abs(slope - loss.derivative(z)) < 1e-8, what, z, slope);
  }
}

void derivatives() {
  for (const double gamma : {0.0, 0.1, 0.5, 1.0, 2.0, 5.0})
    detkit::with_focal_loss<double>(
        gamma, [](const auto& loss) { derivative_is_the_slope_of_the_value(loss, "focal loss: slope at"); });
  for (const double beta : {-1.0, 0.0, 2.5})
    derivative_is_the_slope_of_the_value(detkit::FocalStarLoss<double>{2, beta}, "FL*: slope at");
  for (const double margin : {0.25, 0.5, 1.0})
    derivative_is_the_slope_of_the_value(detkit::HingeLoss<double>{margin}, "hinge: slope at");
}

template <class Loss>
void is_finite_in_float(const Loss& loss, const char* what) {
  for (const float size : {0.0f, 1e-30f, 17.0f, 87.4f, 88.0f, 104.0f, 1e3f, 1e4f})
    for (const float z : {size, -size})
      expect(std::isfinite(loss.value(z)) && std::isfinite(loss.derivative(z)), what, z);
}

void losses_are_finite_in_float() {
  for (const float gamma : {0.0f, 0.1f, 0.2f, 0.5f, 1.0f, 2.0f, 5.0f, 50.0f})
    detkit::with_focal_loss<float>(gamma, [](const auto& loss) { is_finite_in_float(loss, "focal loss: at"); });
  is_finite_in_float(detkit::FocalStarLoss<float>{2, 1}, "FL*: at");
  is_finite_in_float(detkit::HingeLoss<float>{0.5f}, "hinge: at");
}

void losses_pass_on_what_is_no_number() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float gamma : {0.0f, 0.5f, 2.0f})
    detkit::with_focal_loss<float>(gamma, [=](const auto& loss) {
      expect(std::isnan(loss.value(nan)) && std::isnan(loss.derivative(nan)), "focal loss: of NaN");
    });
  expect(std::isnan(detkit::HingeLoss<float>{0.5f}.value(nan)), "hinge: of NaN");
}

// Errors in units of the last place of the exact value, in float against double.
template <class Float, class Double>
void expect_close(Float in_float, Double in_double, float first, float last, double units, const char* what) {
  for (int i = 0; i <= 100000; ++i) {
    const float x = first + (last - first) * static_cast<float>(i) / 100000;
    const double exact = in_double(static_cast<double>(x)), got = in_float(x);
    expect(std::abs(got - exact) <= units * 6e-8 * std::abs(exact) + 1.2e-38, what, x, got);
  }
}

void elementary_functions_are_right_to_rounding() {
  expect_close([](float x) { return detkit::exp_nonpositive(x); }, [](double x) { return std::exp(x); }, -95, 0, 4,
               "exp at");
  expect_close([](float s) { return detkit::twice_atanh(s); }, [](double s) { return 2 * std::atanh(s); }, 0, 1.0f / 3,
               4, "2 atanh at");
  expect(detkit::exp_nonpositive(0.0f) == 1 && detkit::exp_nonpositive(-1e30f) == 0, "exp at its ends");
}

template <class T>
detkit::Box<T> box(T x0, T y0, T x1, T y1) {
  const T xyxy[] = {x0, y0, x1, y1};
  return detkit::Box<T>(xyxy);
}

void overlaps() {
  const auto a = box<double>(0, 0, 2, 2), b = box<double>(1, 0, 3, 2), apart = box<double>(2, 0, 4, 2);
  expect(detkit::iou(a, b) == 2.0 / 6.0, "IoU of a third", detkit::iou(a, b));
  expect(detkit::iou(a, apart) == 0, "boxes that touch do not overlap");
  expect(detkit::iou(a, a) == 1, "IoU with itself");
  expect(detkit::suppresses(a, b, 0.3) && !detkit::suppresses(a, b, 0.34), "suppression at a third");
  expect(!detkit::suppresses(a, a, 1.0), "1 suppresses nothing");
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  for (const auto& odd : {box<double>(nan, 0, 2, 2), box<double>(0, 0, nan, 2), box<double>(0, 0, inf, 2),
                          box<double>(-inf, 0, inf, 2), box<double>(2, 2, 0, 0), box<double>(1, 1, 1, 1)}) {
    expect(detkit::iou(a, odd) == 0 && detkit::iou(odd, a) == 0 && detkit::iou(odd, odd) == 0, "IoU of an odd box");
    expect(!detkit::suppresses(a, odd, 0.0) && !detkit::suppresses(odd, a, 0.0), "an odd box in suppression");
  }
}

// Random numbers of any scale, some of them of one that is drawn once for all.
struct Random {
  uint64_t state = 1;

  uint64_t bits() {  // xorshift
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
  double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
};

void suppression_in_float32_is_that_in_float64() {
  const auto decides_alike = [](const float* a, const float* b, double threshold) {
    const double wide_a[] = {a[0], a[1], a[2], a[3]}, wide_b[] = {b[0], b[1], b[2], b[3]};
    const bool wide = detkit::suppresses(detkit::Box<double>(wide_a), detkit::Box<double>(wide_b), threshold);
    expect(detkit::suppresses(detkit::Box<float>(a), detkit::Box<float>(b), detkit::Threshold(threshold)) == wide,
           "float32 decides otherwise at threshold", threshold, a[0]);
    expect(!wide || detkit::may_overlap(a, b), "boxes that overlap seem apart", threshold, a[0]);
  };
  const float far_a[] = {0, 0, 0x1p45f, 0x1p45f}, far_b[] = {0, 0, 0x1.1p-30f, 0x1p-29f};
  decides_alike(far_a, far_b, 0x1.3p-149);  // a threshold below the normal numbers of float32
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const float odd : {nan, inf, -inf, 0.0f, -1.0f, 3e38f, 1e-45f})
    for (int place = 0; place < 4; ++place)
      for (const double threshold : {0.0, 0.5, 1.0}) {
        float a[] = {0, 0, 2, 2}, b[] = {1, 0, 3, 2};
        a[place] = odd;
        decides_alike(a, b, threshold);
        decides_alike(b, a, threshold);
      }
  Random random;
  for (int i = 0; i < 1000000; ++i) {  // pairs whose overlap is at the threshold, or next to it, of any size
    const double scale = std::exp2(random.uniform(-70, 55)),
                 shift = random.bits() % 4 ? 0 : random.uniform(-9, 9) * scale;
    float box[2][4];
    for (auto& corners : box)
      for (int c = 0; c < 2; ++c) {
        corners[c] = static_cast<float>(shift + random.uniform(0, 1) * scale);
        corners[c + 2] = static_cast<float>(corners[c] + random.uniform(0.2, 2) * scale);
      }
    const double wide_a[] = {box[0][0], box[0][1], box[0][2], box[0][3]};
    const double wide_b[] = {box[1][0], box[1][1], box[1][2], box[1][3]};
    const double exact = detkit::iou(detkit::Box<double>(wide_a), detkit::Box<double>(wide_b));
    const double step = std::exp2(-18.0 - static_cast<double>(random.bits() % 34));
    for (const double threshold : {exact, exact * (1 + step), exact * (1 - step)})
      decides_alike(box[0], box[1], threshold > 1 ? 1 : threshold);
  }
}

}  // namespace

int main() {
  derivatives();
  losses_are_finite_in_float();
  losses_pass_on_what_is_no_number();
  elementary_functions_are_right_to_rounding();
  overlaps();
  suppression_in_float32_is_that_in_float64();
  return failures > 100 ? 100 : failures;
}
