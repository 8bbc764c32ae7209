// Greedy non-maximum suppression in its plainest form: every kept box is compared with all boxes behind it.
// Boxes come by falling score, as four arrays, and flags are as wide as coordinates: compilers vectorise the inner loop.
#include <cstdint>

namespace {
float least(float a, float b) { return a < b ? a : b; }
float largest(float a, float b) { return a > b ? a : b; }
}  // namespace

extern "C" void quadratic_nms(const float* __restrict x0, const float* __restrict y0, const float* __restrict x1,
                              const float* __restrict y1, int64_t count, float threshold,
                              int32_t* __restrict suppressed) {
  for (int64_t i = 0; i < count; ++i) {
    if (suppressed[i]) continue;
    const float left = x0[i], top = y0[i], right = x1[i], bottom = y1[i];
    const float area = (right - left) * (bottom - top);
    for (int64_t j = i + 1; j < count; ++j) {
      const float width = largest(0, least(right, x1[j]) - largest(left, x0[j]));
      const float height = largest(0, least(bottom, y1[j]) - largest(top, y0[j]));
      const float inter = width * height;
      const float either = area + (x1[j] - x0[j]) * (y1[j] - y0[j]) - inter;
      suppressed[j] |= inter > threshold * either;
    }
  }
}
