// Suppression as its kernels see it, and what comes before it: the order of the boxes, and the quotas. Without torch.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../math/box.h"
#include "../math/rank.h"
#include "warp.cuh"

namespace detkit {

constexpr int kWindow = 2048;  // boxes that are decided together
constexpr int kWord = 64;      // of them, at a time
constexpr int kWords = kWindow / kWord;
constexpr int kArrangeThreads = 256;
constexpr int kQuotasAtOnce = 256;

// Suppression in some images, as the kernels see it. What is "ranked" is in order of suppression.
template <class Coordinate>
struct Suppression {
  int64_t images, count;  // boxes of an image
  Threshold threshold;    // infinite where nothing suppresses

  const int64_t* order = nullptr;     // [images, count] the index of each ranked box
  const Coordinate* boxes = nullptr;  // [images, count, 4] ranked
  const int64_t* groups = nullptr;    // [images, count] ranked; null: all boxes are in one
  const int64_t* kinds = nullptr;     // [images, count] by index; null: all are 0
  bool has_quota = false;
  int64_t num_kinds = 0;
  int32_t* left = nullptr;  // [images, num_kinds] how many of each kind are still wanted

  // A place is that of a ranked box.
  uint32_t* alive = nullptr;  // [images, padded() / 32] a bit for each place: a candidate that nothing suppresses yet
  int32_t* places = nullptr;  // [images, kWindow] the window, in order
  int32_t* num_places = nullptr;  // [images]
  int64_t* first = nullptr;       // [images] the place from which on the window was chosen
  int64_t* next = nullptr;        // [images] the place behind it
  uint64_t* bits =
      nullptr;  // [images, words(), window()] which boxes of a word of the window a box of it would suppress
  int32_t* kept = nullptr;        // [images, kWindow] the places that the last window kept, in order
  int32_t* num_kept = nullptr;    // [images]
  int64_t* is_done = nullptr;     // [images]
  int64_t* num_result = nullptr;  // [images] how many boxes the result has

  bool* mask = nullptr;     // [images, count] the result, by index; or null
  int64_t* list = nullptr;  // [count] the result of the one image, in order; or null

  __host__ __device__ int64_t windows() const { return divide_up(count, kWindow); }
  __host__ __device__ int64_t padded() const { return windows() * kWindow; }
  // The most boxes of a window, in whole words: few boxes need no whole one.
  __host__ __device__ int window() const {
    return count < kWindow ? static_cast<int>(divide_up(count, kWord)) * kWord : kWindow;
  }
  __host__ __device__ int words() const { return window() / kWord; }

  // Of images with so many boxes.
  Suppression(int64_t images_, int64_t count_, double iou_threshold)
      : images(images_), count(count_), threshold(iou_threshold < 1 ? iou_threshold : kInfinity<double>) {}

  // The same for some of the images.
  Suppression part(int64_t first, int64_t images_) const {
    Suppression s = *this;
    s.images = images_;
    s.order += first * count, s.boxes += 4 * first * count, s.alive += first * (padded() / 32);
    if (groups) s.groups += first * count;
    if (kinds) s.kinds += first * count;
    if (mask) s.mask += first * count;
    s.left += first * num_kinds;
    return s;  // the memory of windows serves one part after the other
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The order
// ---------------------------------------------------------------------------------------------------------------------

// An integer as wide as a score, whose order is that of suppression.
template <class Score>
using Key = std::conditional_t<sizeof(Score) == 4, int32_t, int64_t>;

template <class Score>
constexpr Key<Score> kNoCandidate = std::numeric_limits<Key<Score>>::max();

template <class Score>
constexpr Key<Score> kSign = std::numeric_limits<Key<Score>>::min();

// Keys of scores. Those that are no finite numbers are last, and -inf behind them where it says "no candidate".
template <class Score>
__global__ void __launch_bounds__(kArrangeThreads)
    rank_scores(const Score* scores, int64_t count, bool skips_minus_infinity, Key<Score>* keys) {
  const int64_t i = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  if (i >= count) return;
  const Score score = scores[i];
  const auto key = static_cast<Key<Score>>(rank_key(score)) ^ kSign<Score>;  // the order of unsigned, in signed ones
  const bool is_none = skips_minus_infinity && score == -kInfinity<Score>;
  keys[i] = skips_minus_infinity && !is_none && key == kNoCandidate<Score> ? key - 1 : key;
}

// Puts boxes and groups in order, and brings the candidates to life.
template <class Score, class Coordinate>
__global__ void __launch_bounds__(kArrangeThreads)
    arrange(Suppression<Coordinate> s, const Key<Score>* ranked_keys, bool skips_minus_infinity,
            const Coordinate* boxes, bool is_aligned, const int64_t* groups, Coordinate* ranked_boxes,
            int64_t* ranked_groups) {
  const int64_t at = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  const int64_t image = at / s.padded(), place = at % s.padded();
  const bool is_box = image < s.images && place < s.count;
  bool is_candidate = false;
  if (is_box) {
    const int64_t to = image * s.count + place, from = image * s.count + s.order[to];
    *reinterpret_cast<Corners<Coordinate>*>(ranked_boxes + 4 * to) = load_corners(boxes + 4 * from, is_aligned);
    if (groups) ranked_groups[to] = groups[from];
    is_candidate = !skips_minus_infinity || ranked_keys[to] != kNoCandidate<Score>;
  }
  const unsigned word = __ballot_sync(kAllLanes, is_candidate);
  if (lane() == 0 && image < s.images) s.alive[at / kWarp] = word;
}

// ---------------------------------------------------------------------------------------------------------------------
// Quotas
// ---------------------------------------------------------------------------------------------------------------------

// Quotas as an argument of a kernel: no memory of the host is read later.
struct Quotas {
  int32_t at[kQuotasAtOnce];
};

static __global__ void __launch_bounds__(kArrangeThreads)
    set_quotas(Quotas quotas, int64_t first, int64_t count, int64_t images, int64_t num_kinds, int32_t* left) {
  const int64_t at = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  if (at < images * count) left[at / count * num_kinds + first + at % count] = quotas.at[at % count];
}

// ---------------------------------------------------------------------------------------------------------------------
// Their launches
// ---------------------------------------------------------------------------------------------------------------------

template <class Score>
void make_keys(const Score* scores, int64_t count, bool skips_minus_infinity, Key<Score>* keys, Stream stream) {
  launch(rank_scores<Score>, divide_up(count, kArrangeThreads), kArrangeThreads, stream, scores, count,
         skips_minus_infinity, keys);
}

// Puts `boxes` and `groups` (null: none) in order, to where `s` reads them.
template <class Score, class Coordinate>
void arrange_boxes(const Suppression<Coordinate>& s, const Key<Score>* ranked_keys, bool skips_minus_infinity,
                   const Coordinate* boxes, const int64_t* groups, Coordinate* ranked_boxes, int64_t* ranked_groups,
                   Stream stream) {
  launch(arrange<Score, Coordinate>, divide_up(s.images * s.padded(), kArrangeThreads), kArrangeThreads, stream, s,
         ranked_keys, skips_minus_infinity, boxes, is_aligned(boxes), groups, ranked_boxes, ranked_groups);
}

// `quota` has num_kinds numbers, none above the number of boxes.
template <class Coordinate>
void fill_quotas(const Suppression<Coordinate>& s, const int64_t* quota, Stream stream) {
  for (int64_t first = 0; first < s.num_kinds; first += kQuotasAtOnce) {
    const int64_t count = s.num_kinds - first < kQuotasAtOnce ? s.num_kinds - first : kQuotasAtOnce;
    Quotas quotas = {};
    for (int64_t i = 0; i < count; ++i) quotas.at[i] = static_cast<int32_t>(quota[first + i]);
    launch(set_quotas, divide_up(s.images * count, kArrangeThreads), kArrangeThreads, stream, quotas, first, count,
           s.images, s.num_kinds, s.left);
  }
}

}  // namespace detkit
