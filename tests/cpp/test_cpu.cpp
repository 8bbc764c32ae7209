// Checks the torch-free headers of csrc/cpu by a plain program, which is built with sanitizers: the index of kept boxes
// against a scan of all of them, and the order by score against a plain sort. Prints what fails and returns how much.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../../csrc/cpu/kept_boxes.h"
#include "../../csrc/cpu/rank.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, int family, double value) {
  if (holds) return;
  std::printf("%s: family %d, %.17g\n", what, family, value);
  ++failures;
}

// ---------------------------------------------------------------------------------------------------------------------
// The index
// ---------------------------------------------------------------------------------------------------------------------

using Random = std::mt19937_64;

double uniform(Random& random, double low, double high) {
  return low + (high - low) * static_cast<double>(random() >> 11) * 0x1p-53;
}

struct Corners {
  double xyxy[4];
};

Corners centred(double x, double y, double w, double h) { return {{x - w / 2, y - h / 2, x + w / 2, y + h / 2}}; }

constexpr int kFamilies = 9;

Corners draw_box(Random& random, int family) {
  const auto from = [&](double low, double high) { return uniform(random, low, high); };
  const auto scale = [&](double octaves) { return std::exp2(from(-octaves / 2, octaves / 2)); };
  switch (family) {
    case 0: return centred(from(0, 60), from(0, 60), from(1, 20), from(1, 20));
    case 1: return centred(from(0, 9), from(0, 0.1), 8, 8);
    case 2: return centred(0, 0, scale(12), scale(12));
    case 3: return centred(from(0, 300), from(0, 300), scale(40), scale(40));
    case 4: return centred(from(0, 1e38), from(0, 1e38), 3e38 * scale(2), 3e38 * scale(2));
    case 5: return centred(1e7 + from(0, 60), -1e7, from(1, 20), from(1, 20));
    case 6: return centred(from(0, 1e-37), from(0, 1e-37), 1e-38 * scale(8), 1e-38 * scale(8));
    case 7: return centred(0x1p30 + from(0, 3), from(0, 3), scale(2), scale(2));
    default: {  // any bits at all
      Corners corners;
      for (double& c : corners.xyxy) {
        const auto bits = static_cast<uint32_t>(random());
        c = random() % 4 ? from(-3, 3) : static_cast<double>(detkit::bit_cast<float>(bits));
      }
      return corners;
    }
  }
}

template <class Coordinate>
struct Candidate {
  Coordinate xyxy[4];
  int64_t group;
};

template <class Coordinate>
Candidate<Coordinate> draw_candidate(Random& random, int family) {
  const Corners corners = draw_box(random, family);
  Candidate<Coordinate> box;
  for (int i = 0; i < 4; ++i) box.xyxy[i] = static_cast<Coordinate>(corners.xyxy[i]);
  constexpr int64_t kGroups[] = {0, -1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
  box.group = kGroups[random() % 4 * (random() % 2)];
  return box;
}

template <class Coordinate>
detkit::Box<double> as_double(const Candidate<Coordinate>& box) {
  const double xyxy[] = {box.xyxy[0], box.xyxy[1], box.xyxy[2], box.xyxy[3]};
  return detkit::Box<double>(xyxy);
}

template <class Coordinate>
bool scan(const std::vector<Candidate<Coordinate>>& kept, const Candidate<Coordinate>& box, double threshold) {
  for (const auto& other : kept)
    if (other.group == box.group && detkit::suppresses(as_double(other), as_double(box), threshold)) return true;
  return false;
}

template <class Coordinate>
void index_equals_scan(int family, double threshold, int64_t most) {
  Random random(static_cast<uint64_t>(family));
  detkit::KeptBoxes<Coordinate> index(threshold, most);
  std::vector<Candidate<Coordinate>> kept;
  for (int64_t i = 0; i < most; ++i) {
    const auto box = draw_candidate<Coordinate>(random, family);
    const bool suppressed = scan(kept, box, threshold);
    expect(index.suppress(box.xyxy, box.group) == suppressed, "the index and the scan differ", family, threshold);
    if (suppressed) continue;
    index.add(box.xyxy, box.group);
    kept.push_back(box);
  }
}

void indices() {
  for (int family = 0; family < kFamilies; ++family)
    for (const double threshold : {0.0, 0.04, 0.05, 0.1, 0.25, 1.0 / 3, 0.5, 0.7, 0.9, 0.99, 1.0})
      for (const int64_t most : {1, 63, 64, 800}) {
        index_equals_scan<float>(family, threshold, most);
        index_equals_scan<double>(family, threshold, most);
      }
}

// ---------------------------------------------------------------------------------------------------------------------
// The order
// ---------------------------------------------------------------------------------------------------------------------

template <class Score, class Bits>
Score draw_score(Random& random, int family) {
  if (family == 0) return static_cast<Score>(random() % 10) - 3;
  if (family == 1) return static_cast<Score>(uniform(random, -1, 1));
  return detkit::bit_cast<Score>(static_cast<Bits>(random()));
}

template <class Score>
bool is_minus_infinity(Score score) {
  return score == -std::numeric_limits<Score>::infinity();
}

// The finite scores, then the others.
template <class Score>
std::vector<uint32_t> plain_order(const std::vector<Score>& scores, bool without_minus_infinity) {
  std::vector<uint32_t> finite, other;
  for (uint32_t i = 0; i < scores.size(); ++i) {
    if (std::isfinite(scores[i])) finite.push_back(i);
    if (!std::isfinite(scores[i]) && !(without_minus_infinity && is_minus_infinity(scores[i]))) other.push_back(i);
  }
  std::stable_sort(finite.begin(), finite.end(), [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
  finite.insert(finite.end(), other.begin(), other.end());
  return finite;
}

template <class Score, class Bits>
void order_equals_plain_sort(int family, size_t count) {
  Random random(static_cast<uint64_t>(family));
  std::vector<Score> scores;
  for (size_t i = 0; i < count; ++i) {
    scores.push_back(draw_score<Score, Bits>(random, family));
    if (random() % 16 == 0) scores.back() = -std::numeric_limits<Score>::infinity();
    if (random() % 16 == 0) scores.back() = static_cast<Score>(-0.0);
  }
  for (const bool without : {false, true})
    expect(detkit::rank_by_score(scores.data(), static_cast<int64_t>(count), without) == plain_order(scores, without),
           "the order by score", family, static_cast<double>(count));
}

void orders() {
  for (int family = 0; family < 3; ++family)
    for (const size_t count : {0, 1, 2, 511, 512, 513, 3000}) {
      order_equals_plain_sort<float, uint32_t>(family, count);
      order_equals_plain_sort<double, uint64_t>(family, count);
    }
}

}  // namespace

int main() {
  indices();
  orders();
  return failures > 100 ? 100 : failures;
}
