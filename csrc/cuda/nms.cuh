// The kernels of suppression, without torch. Boxes come in order of their scores; windows of them are decided one after
// the other, in two launches each, for all images at once:
//
//   compare  a block compares 256 boxes of the window with 64 that follow, and leaves a bit for each pair that would
//            suppress; another one compares 256 boxes that are still alive, from this window on, with the boxes that the
//            last window kept.
//   resolve  a block decides the window of an image: 64 boxes at a time are cleared of what the kept ones before them
//            suppress, then decided among themselves.
//
// Memory is that of the boxes and of one window's bits, whatever their number. An image that has all it wants is done:
// its later launches end at once. Nothing waits for another block, no atomics: the result is the greedy one.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../math/box.h"
#include "../math/rank.h"
#include "warp.cuh"

namespace detkit {

constexpr int kWindow = 2048;
constexpr int kWord = 64;  // boxes of a window that are decided together
constexpr int kWords = kWindow / kWord;
constexpr int kCompareThreads = 256;
constexpr int kResolveThreads = 512;
constexpr int kArrangeThreads = 256;
constexpr int kQuotasAtOnce = 256;

// Suppression in some images, as the kernels see it. What is "ranked" is in order of suppression.
template <class Coordinate>
struct Suppression {
  int64_t images, count;  // boxes of an image
  double threshold;       // infinite where nothing suppresses

  const int64_t* order;     // [images, count] the index of each ranked box
  const Coordinate* boxes;  // [images, count, 4] ranked
  const int64_t* groups;    // [images, count] ranked; null: all boxes are in one
  const int64_t* kinds;     // [images, count] by index; null: all are 0
  bool has_quota;
  int64_t num_kinds;
  int32_t* left;  // [images, num_kinds] how many of each kind are still wanted

  uint32_t* alive;      // [images, padded() / 32] a bit for each ranked box: a candidate that nothing suppresses yet
  uint64_t* bits;       // [images, words(), window()] which boxes of a word a box of the window would suppress
  int32_t* kept;        // [images, kWindow] places in the last window of the boxes that it kept
  int32_t* num_kept;    // [images]
  int32_t* is_done;     // [images]
  int64_t* num_result;  // [images] how many boxes the result has

  bool* mask;     // [images, count] the result, by index; or null
  int64_t* list;  // [count] the result of the one image, in order; or null

  __host__ __device__ int64_t windows() const { return divide_up(count, kWindow); }
  __host__ __device__ int64_t padded() const { return windows() * kWindow; }
  // Boxes of a window: few boxes need no whole one.
  __host__ __device__ int window() const {
    return count < kWindow ? static_cast<int>(divide_up(count, kWord)) * kWord : kWindow;
  }
  __host__ __device__ int words() const { return window() / kWord; }

  // The same for some of the images.
  Suppression part(int64_t first, int64_t images_) const {
    Suppression s = *this;
    s.images = images_;
    s.order += first * count, s.boxes += 4 * first * count, s.alive += first * (padded() / 32);
    if (groups) s.groups += first * count;
    if (kinds) s.kinds += first * count;
    if (mask) s.mask += first * count;
    s.left += first * num_kinds, s.num_result += first, s.is_done += first;
    return s;  // the memory of a window serves one part after the other
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

template <class Score>
constexpr Score kMinusInfinity = -std::numeric_limits<Score>::infinity();

// Keys of scores. Those that are no finite numbers are last, and -inf behind them where it says "no candidate".
template <class Score>
__global__ void __launch_bounds__(kArrangeThreads)
    rank_scores(const Score* scores, int64_t count, bool has_no_candidates, Key<Score>* keys) {
  const int64_t i = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  if (i >= count) return;
  const Score score = scores[i];
  const auto key = static_cast<Key<Score>>(rank_key(score)) ^ kSign<Score>;  // the order of unsigned, in signed ones
  const bool is_none = has_no_candidates && score == kMinusInfinity<Score>;
  keys[i] = has_no_candidates && !is_none && key == kNoCandidate<Score> ? key - 1 : key;
}

// Puts boxes and groups in order, and makes the candidates alive.
template <class Score, class Coordinate>
__global__ void __launch_bounds__(kArrangeThreads)
    arrange(Suppression<Coordinate> s, const Key<Score>* ranked_keys, bool has_no_candidates, const Coordinate* boxes,
            const int64_t* groups, Coordinate* ranked_boxes, int64_t* ranked_groups) {
  const int64_t at = int64_t{blockIdx.x} * kArrangeThreads + threadIdx.x;
  const int64_t image = at / s.padded(), place = at % s.padded();
  const bool is_box = image < s.images && place < s.count;
  bool is_candidate = false;
  if (is_box) {
    const int64_t to = image * s.count + place, from = image * s.count + s.order[to];
    for (int i = 0; i < 4; ++i) ranked_boxes[4 * to + i] = boxes[4 * from + i];
    if (groups) ranked_groups[to] = groups[from];
    is_candidate = !has_no_candidates || ranked_keys[to] != kNoCandidate<Score>;
  }
  const unsigned word = __ballot_sync(kAllLanes, is_candidate);
  if (lane() == 0 && image < s.images) s.alive[at / kWarp] = word;
}

// ---------------------------------------------------------------------------------------------------------------------
// Comparing
// ---------------------------------------------------------------------------------------------------------------------

template <class Coordinate>
struct alignas(16) Corners {
  Coordinate xyxy[4];
};

template <class Coordinate>
__device__ Box<Coordinate> ranked_box(const Suppression<Coordinate>& s, int64_t image, int64_t place) {
  const auto corners = *reinterpret_cast<const Corners<Coordinate>*>(s.boxes + 4 * (image * s.count + place));
  return Box<Coordinate>(corners.xyxy);
}

template <class Coordinate>
__device__ int64_t ranked_group(const Suppression<Coordinate>& s, int64_t image, int64_t place) {
  return s.groups ? s.groups[image * s.count + place] : 0;
}

// Boxes in memory of the block.
template <class Coordinate>
struct Shelf {
  Array<Box<Coordinate>, kCompareThreads> boxes;
  Array<int64_t, kCompareThreads> groups;

  __device__ void put(int i, const Suppression<Coordinate>& s, int64_t image, int64_t place) {
    boxes[i] = ranked_box(s, image, place);
    groups[i] = ranked_group(s, image, place);
  }

  __device__ bool suppresses_one(int i, const Box<Coordinate>& box, int64_t group, double threshold) const {
    return groups[i] == group && suppresses(boxes[i], box, threshold);
  }
};

// Which of the 64 boxes of a word each of 256 boxes, of the same window and before them, would suppress.
template <class Coordinate>
__device__ void compare_within(const Suppression<Coordinate>& s, int64_t image, int64_t window, int word, int chunk,
                               Shelf<Coordinate>& shelf) {
  const int64_t start = window * kWindow, first = int64_t{word} * kWord;
  if (chunk * kCompareThreads >= first + kWord) return;  // none is before
  const int64_t rest = s.count - start - first;
  const int columns = rest < kWord ? static_cast<int>(rest > 0 ? rest : 0) : kWord;
  if (static_cast<int>(threadIdx.x) < columns) shelf.put(threadIdx.x, s, image, start + first + threadIdx.x);
  __syncthreads();
  const int row = chunk * kCompareThreads + static_cast<int>(threadIdx.x);
  if (row >= s.window() || start + row >= s.count || row >= first + kWord) return;
  const Box<Coordinate> box = ranked_box(s, image, start + row);
  const int64_t group = ranked_group(s, image, start + row);
  uint64_t found = 0;
  for (int i = row < first ? 0 : static_cast<int>(row - first) + 1; i < columns; ++i)
    if (shelf.suppresses_one(i, box, group, s.threshold)) found |= uint64_t{1} << i;
  s.bits[(image * s.words() + word) * s.window() + row] = found;
}

// Ends those of 256 boxes, of this window or later, that the boxes kept by the last window suppress.
template <class Coordinate>
__device__ void compare_with_kept(const Suppression<Coordinate>& s, int64_t image, int64_t window, int64_t first,
                                  Shelf<Coordinate>& shelf) {
  const int kept = s.num_kept[image];
  uint32_t* const words = s.alive + (image * s.padded() + first) / kWarp;
  uint32_t any = 0;
  for (int i = 0; i < kCompareThreads / kWarp; ++i) any |= words[i];
  if (any == 0 || kept == 0) return;
  const uint32_t before = words[warp()];
  bool is_alive = before >> lane() & 1;
  const int64_t place = first + threadIdx.x;
  const Box<Coordinate> box = is_alive ? ranked_box(s, image, place) : Box<Coordinate>();
  const int64_t group = is_alive ? ranked_group(s, image, place) : 0;
  for (int start = 0; start < kept; start += kCompareThreads) {
    const int count = kept - start < kCompareThreads ? kept - start : kCompareThreads;
    if (static_cast<int>(threadIdx.x) < count) {
      const int32_t of_window = s.kept[image * kWindow + start + threadIdx.x];
      shelf.put(threadIdx.x, s, image, (window - 1) * kWindow + of_window);
    }
    __syncthreads();
    for (int i = 0; i < count && is_alive; ++i) is_alive = !shelf.suppresses_one(i, box, group, s.threshold);
    __syncthreads();
  }
  const uint32_t after = __ballot_sync(kAllLanes, is_alive);
  if (lane() == 0 && after != before) words[warp()] = after;
}

template <class Coordinate>
int64_t blocks_within(const Suppression<Coordinate>& s) {
  return s.words() * divide_up(s.window(), kCompareThreads);
}

template <class Coordinate>
__global__ void __launch_bounds__(kCompareThreads)
    compare(Suppression<Coordinate> s, int64_t window, int64_t blocks_of_image, int64_t within) {
  DETKIT_SHARED(shelf, Shelf<Coordinate>);
  const int64_t image = blockIdx.x / blocks_of_image, block = blockIdx.x % blocks_of_image;
  if (s.is_done[image]) return;
  if (block < within) {
    compare_within(s, image, window, static_cast<int>(block) % s.words(), static_cast<int>(block) / s.words(), shelf);
  } else {
    compare_with_kept(s, image, window, window * kWindow + (block - within) * kCompareThreads, shelf);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Deciding
// ---------------------------------------------------------------------------------------------------------------------

// A bit for each box of a window, with how many are set before each word.
struct Marked {
  Array<uint64_t, kWords> words;
  Array<int, kWords + 1> before;

  __device__ bool has(int place) const { return words[place / kWord] >> (place % kWord) & 1; }

  // How many are set before a place.
  __device__ int rank(int place) const {
    const uint64_t lower = (uint64_t{1} << (place % kWord)) - 1;
    return before[place / kWord] + __popcll(words[place / kWord] & lower);
  }

  __device__ int total() const { return before[kWords]; }

  // Counts, by one warp, a lane to a word; the others need a barrier after it.
  __device__ void count() {
    static_assert(kWords == kWarp, "a lane for a word");
    const int mine = __popcll(words[lane()]);
    int up_to = mine;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, up_to, distance);
      if (lane() >= distance) up_to += other;
    }
    before[lane()] = up_to - mine;
    if (lane() == kWarp - 1) before[kWords] = up_to;
  }
};

// The boxes of a word that are kept, by one warp: of the candidates, those that no kept one before them suppresses. Repeats
// that rule until nothing changes: after n rounds the first n are right, and mostly a few rounds do.
__device__ inline uint64_t decide_word(uint64_t candidates, const uint64_t* bits_of_row) {
  const int low = lane(), high = lane() + kWarp;
  const uint64_t of_low = candidates >> low & 1 ? bits_of_row[low] : 0;
  const uint64_t of_high = candidates >> high & 1 ? bits_of_row[high] : 0;
  uint64_t kept = candidates;
  for (;;) {
    const uint64_t suppressed = over_lanes((kept >> low & 1 ? of_low : 0) | (kept >> high & 1 ? of_high : 0), BitOr());
    const uint64_t now = candidates & ~suppressed;
    if (now == kept) return kept;
    kept = now;
  }
}

// Decides the boxes of a window. Both words must be zero at first; all threads of the block come here.
template <class Coordinate>
__device__ void decide(const Suppression<Coordinate>& s, int64_t image, const Array<uint64_t, kWords>& alive,
                       Array<uint64_t, kWords>& kept, Array<uint64_t, kResolveThreads / kWarp>& parts) {
  const int rows = s.window();
  for (int word = 0; word < s.words(); ++word) {
    const uint64_t candidates = alive[word];
    if (candidates == 0) continue;
    const uint64_t* const bits = s.bits + (image * s.words() + word) * rows;
    uint64_t suppressed = 0;
    for (int row = threadIdx.x; row < word * kWord; row += kResolveThreads)
      if (kept[row / kWord] >> (row % kWord) & 1) suppressed |= bits[row];
    suppressed = over_block<kResolveThreads>(suppressed, parts, BitOr());
    if (warp() == 0) {
      const uint64_t now = decide_word(candidates & ~suppressed, bits + word * kWord);
      if (lane() == 0) kept[word] = now;
    }
    __syncthreads();
  }
}

// The lowest `most` of the bits that are set.
__device__ inline uint64_t lowest_bits(uint64_t bits, int most) {
  uint64_t rest = bits;
  for (int i = 0; i < most && rest; ++i) rest &= rest - 1;
  return bits ^ rest;
}

// Takes of each kind as many of the kept boxes as are still wanted; returns whether more are. All threads come here.
template <class Coordinate>
__device__ bool take_quotas(const Suppression<Coordinate>& s, int64_t image, int64_t start, const Marked& kept,
                            Array<uint32_t, 2 * kWords>& halves, Marked& of_kind, Marked& taken) {
  bool is_any_wanted = false;
  for (int64_t kind = 0; kind < s.num_kinds; ++kind) {
    int32_t& left = s.left[image * s.num_kinds + kind];
    const int wanted = left;
    for (int place = threadIdx.x; place < s.window(); place += kResolveThreads) {
      bool is_of_kind = kept.has(place);
      if (is_of_kind && s.kinds)
        is_of_kind = s.kinds[image * s.count + s.order[image * s.count + start + place]] == kind;
      const uint32_t half = __ballot_sync(kAllLanes, is_of_kind);
      if (lane() == 0) halves[place / kWarp] = half;
    }
    __syncthreads();
    if (warp() == 0) {
      const bool is_word = lane() < s.words();
      of_kind.words[lane()] = is_word ? halves[2 * lane()] | uint64_t{halves[2 * lane() + 1]} << kWarp : 0;
      of_kind.count();
      __syncwarp();
      taken.words[lane()] |= lowest_bits(of_kind.words[lane()], wanted - of_kind.before[lane()]);
      if (lane() == 0) left = wanted > of_kind.total() ? wanted - of_kind.total() : 0;
    }
    __syncthreads();
    is_any_wanted |= wanted > of_kind.total();
    __syncthreads();  // the next kind writes what this one reads
  }
  return is_any_wanted;
}

template <class Coordinate>
__global__ void __launch_bounds__(kResolveThreads) resolve(Suppression<Coordinate> s, int64_t window) {
  DETKIT_SHARED(alive, Array<uint64_t, kWords>);
  DETKIT_SHARED(parts, Array<uint64_t, kResolveThreads / kWarp>);
  DETKIT_SHARED(kept, Marked);
  DETKIT_SHARED(halves, Array<uint32_t, 2 * kWords>);
  DETKIT_SHARED(of_kind, Marked);
  DETKIT_SHARED(taken, Marked);
  const int64_t image = blockIdx.x, start = window * kWindow;
  if (s.is_done[image]) return;
  const int64_t found = s.num_result[image];
  if (threadIdx.x < kWords) {
    const uint32_t* const halves = s.alive + (image * s.padded() + start) / kWarp + 2 * threadIdx.x;
    alive[threadIdx.x] = halves[0] | uint64_t{halves[1]} << kWarp;
    kept.words[threadIdx.x] = taken.words[threadIdx.x] = 0;
  }
  __syncthreads();
  decide(s, image, alive, kept.words, parts);
  bool is_any_wanted = true;
  if (s.has_quota) {
    is_any_wanted = take_quotas(s, image, start, kept, halves, of_kind, taken);
  } else if (threadIdx.x < kWords) {
    taken.words[threadIdx.x] = kept.words[threadIdx.x];
  }
  __syncthreads();
  if (warp() == 0) {
    kept.count();
    taken.count();
  }
  __syncthreads();
  for (int place = threadIdx.x; place < s.window(); place += kResolveThreads) {
    if (kept.has(place)) s.kept[image * kWindow + kept.rank(place)] = place;
    if (!taken.has(place)) continue;
    const int64_t index = s.order[image * s.count + start + place];
    if (s.mask) s.mask[image * s.count + index] = true;
    if (s.list) s.list[found + taken.rank(place)] = index;
  }
  if (threadIdx.x == 0) {
    s.num_kept[image] = kept.total();
    s.num_result[image] = found + taken.total();
    s.is_done[image] = !is_any_wanted;
  }
}

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

// The images that share the memory of a window.
inline int64_t images_at_once(int64_t images) { return images < 64 ? images : 64; }

template <class Score>
void make_keys(const Score* scores, int64_t count, bool has_no_candidates, Key<Score>* keys, Stream stream) {
  launch(rank_scores<Score>, divide_up(count, kArrangeThreads), kArrangeThreads, stream, scores, count,
         has_no_candidates, keys);
}

// Puts `boxes` and `groups` (null: none) in order into the memory that `s` reads.
template <class Score, class Coordinate>
void arrange_boxes(const Suppression<Coordinate>& s, const Key<Score>* ranked_keys, bool has_no_candidates,
                   const Coordinate* boxes, const int64_t* groups, Stream stream) {
  launch(arrange<Score, Coordinate>, divide_up(s.images * s.padded(), kArrangeThreads), kArrangeThreads, stream, s,
         ranked_keys, has_no_candidates, boxes, groups, const_cast<Coordinate*>(s.boxes),
         const_cast<int64_t*>(s.groups));
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

// Needs is_done, num_result and the mask at zero, quotas filled and boxes arranged.
template <class Coordinate>
void suppress(const Suppression<Coordinate>& all, Stream stream) {
  for (int64_t first = 0; first < all.images; first += images_at_once(all.images)) {
    const int64_t rest = all.images - first;
    const auto s = all.part(first, rest < images_at_once(all.images) ? rest : images_at_once(all.images));
    for (int64_t window = 0; window < s.windows(); ++window) {
      const int64_t within = blocks_within(s), later = s.padded() - window * kWindow;
      const int64_t blocks = within + (window ? later / kCompareThreads : 0);
      launch(compare<Coordinate>, s.images * blocks, kCompareThreads, stream, s, window, blocks, within);
      launch(resolve<Coordinate>, s.images, kResolveThreads, stream, s, window);
    }
  }
}

}  // namespace detkit
