// The boxes that suppression has kept so far, found again by size and place.
//
// IoU > t has consequences that a hash table can use. With w the width of one box and s * w that of the other:
//   * s is in [t, 1/t]: the intersection is at most min(w, s w) wide, the union at least max(w, s w); so for heights;
//   * their centres are at most w ((1 + s) / 2 - t max(1, s)) apart in x: the intersection is more than t max(w, s w)
//     wide, and at most (w + s w) / 2 less that distance; so in y with heights.
// Widths and heights are sorted into bins, each four times the last. Each pair of bins (of width, of height) has a grid
// with cells as large as the distances that matter among its boxes. A kept box is in the cell of its centre; a question
// looks into the few pairs of bins where a suppressor can be, there into the few cells that it can reach. As kept boxes
// do not suppress one another, few of them fit into a cell, whatever the input (more as t nears 1, for then boxes may
// differ by little): the cost stays near-linear.
//
// Different cells may share a list: whoever is found is judged by the exact test, in float64 from the given
// coordinates. Bins and distances leave a margin far above the rounding of these. What has no place in such a grid (a
// threshold near 0, sides that vanish beside their coordinates) is in a list of its group, and compared one by one.
#pragma once

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../math/box.h"
#include "../math/elementary.h"
#include "vectorize.h"

namespace detkit {

// Some boxes of a list, all of one group, for vectors. An unused place is a box without area: it suppresses nothing.
template <class Coordinate>
struct Node {
  static constexpr int kPlaces = 8;

  Coordinate x0[kPlaces] = {}, y0[kPlaces] = {}, x1[kPlaces] = {}, y1[kPlaces] = {};
  int64_t group = 0;
  int32_t used = 0, next = -1;
};

template <class Coordinate>
class KeptBoxes {
 public:
  // `most` is an upper bound of how many will be kept.
  KeptBoxes(double threshold, int64_t most)
      : threshold_(threshold),
        has_grid_(threshold >= kLeastThreshold && most >= kLeastForGrid),
        per_side_(0.5 / std::max(kLeastReach, (1 - threshold) * std::max(1.0, 0.5 / threshold))),
        least_ratio_(threshold * (1 - kMargin)),
        most_ratio_((1 + kMargin) / threshold) {
    size_t lists = 64;
    while (static_cast<int64_t>(lists) < 2 * most && lists < kMostLists) lists *= 2;
    lists_.assign(lists, -1);
    nodes_.reserve(static_cast<size_t>(std::min(most, kNodesAtOnce)));
  }

  // Whether a kept box of the group suppresses this one.
  bool suppress(const Coordinate* xyxy, int64_t group) const {
    const Box<double> box = as_double(xyxy);
    if (!has_area(box) || threshold_ >= 1) return false;  // inter > union never holds, rounding included
    bool found = false;
    on_widest_vectors([&]() DETKIT_INLINE { found = is_suppressed(box, group); });
    return found;
  }

  void add(const Coordinate* xyxy, int64_t group) {
    const Box<double> box = as_double(xyxy);
    if (!has_area(box) || threshold_ >= 1) return;
    if (!fits_grid(box)) {
      has_misfits_ = true;
      return push(lists_[misfits_slot(group)], xyxy, group);
    }
    has_fitting_ = true;
    const int64_t w = bin(box.x1 - box.x0), h = bin(box.y1 - box.y0);
    occupied_[occupied_slot(w, h, group)] = true;
    const int64_t column = cell((box.x0 + box.x1) * per_length(w)), row = cell((box.y0 + box.y1) * per_length(h));
    push(lists_[slot(w, h, column, row, group)], xyxy, group);
  }

 private:
  static constexpr double kLeastThreshold = 0.05;
  static constexpr int64_t kLeastForGrid = 64;
  static constexpr int64_t kNodesAtOnce = 4096;
  static constexpr size_t kMostLists = size_t{1} << 21;
  static constexpr double kMargin = 1.0 / 1024;    // of a cell or a side: far above rounding
  static constexpr double kLeastReach = 1.0 / 64;  // near t = 1 cells need not shrink with it
  static constexpr size_t kOccupied = 16384;
  static constexpr int kMostBins = 8;  // from t to 1 / t at the least threshold

  // The cells, along one axis, of a bin that a box can reach.
  struct Reach {
    int64_t bin, first, last;
  };

  static Box<double> as_double(const Coordinate* xyxy) {
    const double wide[] = {static_cast<double>(xyxy[0]), static_cast<double>(xyxy[1]), static_cast<double>(xyxy[2]),
                           static_cast<double>(xyxy[3])};
    return Box<double>(wide);
  }

  // A box whose area is 0, infinite or not a number passes no test of overlap, on either side.
  static bool has_area(const Box<double>& box) { return box.area > 0 && std::isfinite(box.area); }

  // Whether sides and areas are normal numbers and cells can be counted without losing the place.
  bool fits_grid(const Box<double>& box) const { return has_grid_ && fits(box.x0, box.x1) && fits(box.y0, box.y1); }

  static bool fits(double low, double high) {
    const double side = high - low;
    return side > 0x1p-500 && side < 0x1p500 && std::max(std::abs(low), std::abs(high)) < 0x1p30 * side;
  }

  // A bin holds the sides of two octaves: all but the last bit of the exponent of a double.
  static int64_t bin(double side) { return bit_cast<int64_t>(side) >> 53; }
  static double least_side(int64_t bin) { return bit_cast<double>(bin << 53); }

  // Cells per length in the grid of a bin: one is as large as the reach of the bin's largest side. Centres are given
  // doubled, as the sum of both ends, hence the 2.
  double per_length(int64_t bin) const { return per_side_ * inverse_of_next(bin); }

  // 1 / least_side(bin + 1), a power of two: the bits of its exponent turned round.
  static double inverse_of_next(int64_t bin) { return bit_cast<double>((int64_t{2046} << 52) - ((bin + 1) << 53)); }

  static int64_t cell(double place) {  // floor, without a call
    const auto whole = static_cast<int64_t>(place);
    return whole - (place < static_cast<double>(whole));
  }

  // How far apart the centres of two boxes can be, along an axis, given their sides.
  double reach(double side, double other) const { return 0.5 * (side + other) - threshold_ * std::max(side, other); }

  // Where, along one axis, the suppressors of a box can be, in its own bin first; returns how many bins that are.
  int reaches(double low, double high, Reach* out) const {
    const double side = high - low, least = side * least_ratio_, most = side * most_ratio_;
    const int64_t own = bin(side);
    int count = 0;
    for (int64_t b = bin(least), last = bin(most); b <= last; ++b) {
      // Linear in the other side below and above this one: the maximum over the bin is at an end of it, or at this
      // side.
      const double smallest = std::max(least, least_side(b)), largest = std::min(most, least_side(b + 1));
      double farthest = std::max(reach(side, smallest), reach(side, largest));
      if (b == own) farthest = std::max(farthest, reach(side, side));
      const double per = per_length(b), centre = (low + high) * per, far = 2 * farthest * per + kMargin;
      out[count++] = {b, cell(centre - far), cell(centre + far)};
      if (b == own) std::swap(out[0], out[count - 1]);
    }
    return count;
  }

  static uint64_t mix(uint64_t key, int64_t value) {
    key = (key ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    return key ^ key >> 32;
  }

  static size_t occupied_slot(int64_t width_bin, int64_t height_bin, int64_t group) {
    return mix(mix(mix(0, width_bin), height_bin), group) % kOccupied;
  }

  size_t slot(int64_t width_bin, int64_t height_bin, int64_t column, int64_t row, int64_t group) const {
    return mix(mix(mix(mix(mix(0, width_bin), height_bin), group), column), row) & (lists_.size() - 1);
  }

  size_t misfits_slot(int64_t group) const { return mix(~uint64_t{0}, group) & (lists_.size() - 1); }

  DETKIT_INLINE inline bool is_suppressed(const Box<double>& box, int64_t group) const {
    if (has_misfits_ && any(lists_[misfits_slot(group)], box, group)) return true;
    if (!fits_grid(box)) return has_fitting_ && any_at_all(box, group);
    Reach widths[kMostBins], heights[kMostBins];
    const int num_widths = reaches(box.x0, box.x1, widths), num_heights = reaches(box.y0, box.y1, heights);
    for (int w = 0; w < num_widths; ++w)
      for (int h = 0; h < num_heights; ++h)
        if (any_in(widths[w], heights[h], box, group)) return true;
    return false;
  }

  DETKIT_INLINE inline bool any_in(const Reach& x, const Reach& y, const Box<double>& box, int64_t group) const {
    if (!occupied_[occupied_slot(x.bin, y.bin, group)]) return false;
    for (int64_t row = y.first; row <= y.last; ++row)
      for (int64_t column = x.first; column <= x.last; ++column)
        if (any(lists_[slot(x.bin, y.bin, column, row, group)], box, group)) return true;
    return false;
  }

  DETKIT_INLINE inline bool any(int32_t list, const Box<double>& box, int64_t group) const {
    for (const Node<Coordinate>* node; list >= 0; list = node->next) {
      node = &nodes_[static_cast<size_t>(list)];
      if (node->group == group && any_of(*node, box)) return true;
    }
    return false;
  }

  DETKIT_INLINE inline bool any_at_all(const Box<double>& box, int64_t group) const {
    for (const auto& node : nodes_)
      if (node.group == group && any_of(node, box)) return true;
    return false;
  }

  DETKIT_INLINE inline bool any_of(const Node<Coordinate>& node, const Box<double>& box) const {
    int64_t found = 0;
    for (int i = 0; i < Node<Coordinate>::kPlaces; ++i) {
      const double xyxy[] = {static_cast<double>(node.x0[i]), static_cast<double>(node.y0[i]),
                             static_cast<double>(node.x1[i]), static_cast<double>(node.y1[i])};
      found |= -static_cast<int64_t>(suppresses(Box<double>(xyxy), box, threshold_));
    }
    return found != 0;
  }

  void push(int32_t& list, const Coordinate* xyxy, int64_t group) {
    if (list < 0 || at(list).used == Node<Coordinate>::kPlaces || at(list).group != group) {
      nodes_.emplace_back();
      nodes_.back().group = group;
      nodes_.back().next = list;
      list = static_cast<int32_t>(nodes_.size() - 1);
    }
    auto& node = at(list);
    const int i = node.used++;
    node.x0[i] = xyxy[0], node.y0[i] = xyxy[1], node.x1[i] = xyxy[2], node.y1[i] = xyxy[3];
  }

  Node<Coordinate>& at(int32_t node) { return nodes_[static_cast<size_t>(node)]; }

  double threshold_;
  bool has_grid_;
  double per_side_;  // cells per largest side of a bin: the inverse of its reach, halved as centres double
  double least_ratio_, most_ratio_;  // of the sides of two boxes that overlap enough
  std::vector<Node<Coordinate>> nodes_;
  std::vector<int32_t> lists_;  // the first node of each list
  bool has_fitting_ = false, has_misfits_ = false;
  std::bitset<kOccupied> occupied_;  // pairs of bins by group, several sharing a bit
};

}  // namespace detkit
