// Checks the torch-free headers of csrc/math by a plain program; prints what fails and returns the number of failures.
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <limits>

#include "../../csrc/math/box.h"
#include "../../csrc/math/focal.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, double a = 0, double b = 0) {
  if (holds) return;
  std::printf("%s (%.17g, %.17g)\n", what, a, b);
  ++failures;
}

void focal_derivative_is_the_slope_of_the_value() {
  for (const double gamma : {0.0, 0.1, 0.5, 1.0, 2.0, 5.0}) {
    const detkit::FocalShape<double> shape{gamma};
    for (double z = -30; z <= 30; z += 0.37) {
      const double h = 1e-5, slope = (shape.value(z + h) - shape.value(z - h)) / (2 * h);
      expect(std::abs(slope - shape.derivative(z)) < 1e-8, "derivative differs from the slope at", z, gamma);
    }
  }
}

void focal_is_finite_in_float() {
  for (const float gamma : {0.0f, 0.1f, 0.2f, 0.5f, 1.0f, 2.0f, 5.0f, 50.0f}) {
    const detkit::FocalShape<float> shape{gamma};
    for (const float size : {0.0f, 1e-30f, 17.0f, 88.0f, 104.0f, 1e3f, 1e4f})
      for (const float z : {size, -size})
        expect(std::isfinite(shape.value(z)) && std::isfinite(shape.derivative(z)), "not finite at", z, gamma);
  }
}

void weights_and_signs_follow_the_label() {
  const detkit::Weighted<detkit::FocalShape<double>, double> loss{{2.0}, 0.25, 0.75};
  expect(loss.value(3.0, true) == 0.25 * loss.shape.value(3.0), "value of the labelled class");
  expect(loss.value(3.0, false) == 0.75 * loss.shape.value(-3.0), "value of another class");
  expect(loss.derivative(3.0, true) < 0, "the labelled class is pushed up");
  expect(loss.derivative(3.0, false) > 0, "another class is pushed down");
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

}  // namespace

int main() {
  focal_derivative_is_the_slope_of_the_value();
  focal_is_finite_in_float();
  weights_and_signs_follow_the_label();
  overlaps();
  return failures > 100 ? 100 : failures;
}
