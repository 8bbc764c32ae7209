// The kernels of suppression, without torch. Boxes come in order of their scores. Windows of 2048 that are still alive
// are decided one after the other, in two launches each, for all images at once:
//
//   compare  a block compares 256 boxes of the window with 64 that follow in it, and leaves a bit for each pair that
//   would
//            suppress; another one compares 256 boxes, from this window on, with 256 that the last window kept, and
//            ends those that are suppressed.
//   resolve  a block decides the window of an image: 64 boxes at a time are cleared of what the kept ones before them
//            suppress, then decided among themselves. Then it chooses the next window, of the boxes that are alive. (It
//            does not know yet what this window suppresses: some of them will come to it dead. That saves a launch.)
//
// So the work is that of the boxes kept times those alive, and the part that is serial that of the survivors. Memory is
// that of the boxes and of one window's bits, whatever their number. An image that has all it wants, or no box left, is
// done: its later launches end at once. No block waits for another, and atomics are those of bits, in any order the
// same: the result is the greedy one.
#pragma once

#include <cstdint>

#include "nms_order.cuh"

namespace detkit {

constexpr int kCompareThreads = 256;
constexpr int kChunks = kWindow / kCompareThreads;  // that a window's kept boxes may be
constexpr int kStep = 4;                            // boxes that are tried at once
constexpr int kResolveThreads = 512;

// ---------------------------------------------------------------------------------------------------------------------
// Comparing
// ---------------------------------------------------------------------------------------------------------------------

template <class Coordinate>
__device__ Corners<Coordinate> ranked_box(const Suppression<Coordinate>& s, int64_t image, int64_t place) {
  return load_corners(s.boxes + 4 * (image * s.count + place), true);
}

template <class Coordinate>
__device__ int64_t ranked_group(const Suppression<Coordinate>& s, int64_t image, int64_t place) {
  return s.groups ? s.groups[image * s.count + place] : 0;
}

// Boxes in memory of the block.
template <class Coordinate>
struct Shelf {
  Array<Corners<Coordinate>, kCompareThreads> corners;
  Array<int64_t, kCompareThreads> groups;

  __device__ void put(int i, const Suppression<Coordinate>& s, int64_t image, int64_t place) {
    corners[i] = ranked_box(s, image, place);
    groups[i] = ranked_group(s, image, place);
  }

  // A box inside out, which overlaps nothing.
  __device__ void put_nothing(int i) {
    constexpr Coordinate kFar = kInfinity<Coordinate>;
    corners[i] = {{kFar, kFar, -kFar, -kFar}};
  }

  // Whether one of kStep boxes may overlap another: most do not, and this is all that is done about them.
  __device__ bool may_any_overlap(int first, const Corners<Coordinate>& box) const {
    bool may = false;
#pragma unroll
    for (int i = 0; i < kStep; ++i) may |= may_overlap(corners[first + i].xyxy, box.xyxy);
    return may;
  }

  __device__ bool suppresses_one(const Suppression<Coordinate>& s, int i, const Corners<Coordinate>& box,
                                 int64_t group) const {
    if (s.groups && groups[i] != group) return false;
    return suppresses(Box<Coordinate>(corners[i].xyxy), Box<Coordinate>(box.xyxy), s.threshold);
  }
};

// Which of the 64 boxes of a word each of 256 boxes, of the same window and before them, would suppress.
template <class Coordinate>
__device__ void compare_within(const Suppression<Coordinate>& s, int64_t image, int word, int chunk,
                               Shelf<Coordinate>& shelf) {
  const int32_t* const places = s.places + image * kWindow;
  const int members = s.num_places[image], first = word * kWord, thread = static_cast<int>(threadIdx.x);
  const int columns = members - first < kWord ? members - first : kWord;
  if (columns <= 0 || chunk * kCompareThreads >= first + columns) return;  // nobody is before anybody
  if (thread < columns) {
    shelf.put(thread, s, image, places[first + thread]);
  } else if (thread < kWord) {
    shelf.put_nothing(thread);
  }
  __syncthreads();
  const int row = chunk * kCompareThreads + thread;
  if (row >= first + columns) return;
  const Corners<Coordinate> box = ranked_box(s, image, places[row]);
  const int64_t group = ranked_group(s, image, places[row]);
  uint64_t found = 0;
  for (int step = 0; step < kWord; step += kStep) {
    if (!shelf.may_any_overlap(step, box)) continue;
    for (int i = step; i < step + kStep; ++i)
      if (first + i > row && shelf.suppresses_one(s, i, box, group)) found |= uint64_t{1} << i;
  }
  s.bits[(image * s.words() + word) * s.window() + row] = found;
}

// Ends those of 256 boxes, from this window on, that 256 of the boxes kept by the last window suppress.
template <class Coordinate>
__device__ void compare_with_kept(const Suppression<Coordinate>& s, int64_t image, int64_t start, int chunk,
                                  Shelf<Coordinate>& shelf) {
  const int64_t first = s.first[image];
  const int others = s.num_kept[image] - chunk * kCompareThreads, thread = static_cast<int>(threadIdx.x);
  if (others <= 0 || start + kCompareThreads <= first) return;
  if (thread < others) {
    shelf.put(thread, s, image, s.kept[image * kWindow + chunk * kCompareThreads + thread]);
  } else {
    shelf.put_nothing(thread);
  }
  __syncthreads();
  uint32_t* const word = s.alive + (image * s.padded() + start) / kWarp + warp();
  const int64_t place = start + threadIdx.x;
  const bool was_alive = (__ldcg(word) >> lane() & 1) && place >= first;  // or another block has ended it by now
  bool is_alive = was_alive;
  if (was_alive) {
    const Corners<Coordinate> box = ranked_box(s, image, place);
    const int64_t group = ranked_group(s, image, place);
    for (int step = 0; step < others && step < kCompareThreads && is_alive; step += kStep) {
      if (!shelf.may_any_overlap(step, box)) continue;
      for (int i = step; i < step + kStep && is_alive; ++i) is_alive = !shelf.suppresses_one(s, i, box, group);
    }
  }
  const uint32_t ended = __ballot_sync(kAllLanes, was_alive && !is_alive);
  if (lane() == 0 && ended) atomicAnd(word, ~ended);
}

// How the blocks of an image share the work of a window.
struct Shares {
  int64_t within, later;  // blocks for pairs of the window; of boxes from this window on

  template <class Coordinate>
  Shares(const Suppression<Coordinate>& s, int64_t window)
      : within(s.words() * divide_up(s.window(), kCompareThreads)),
        later(window ? (s.padded() - window * kWindow) / kCompareThreads : 0) {}

  __host__ __device__ int64_t blocks() const { return within + later * kChunks; }
};

template <class Coordinate>
__global__ void __launch_bounds__(kCompareThreads) compare(Suppression<Coordinate> s, int64_t window, Shares shares) {
  DETKIT_SHARED(shelf, Shelf<Coordinate>);
  const int64_t image = blockIdx.x / shares.blocks();
  const int block = static_cast<int>(blockIdx.x % shares.blocks());
  if (s.is_done[image]) return;
  if (block < shares.within) {
    compare_within(s, image, block % s.words(), block / s.words(), shelf);
  } else {  // the windows before have passed as many places, at least
    const int64_t other = block - shares.within;
    compare_with_kept(s, image, window * kWindow + other / kChunks * kCompareThreads, static_cast<int>(other % kChunks),
                      shelf);
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
    const int mine = __popcll(words[lane()]), up_to = sum_up_to(mine);
    before[lane()] = up_to - mine;
    if (lane() == kWarp - 1) before[kWords] = up_to;
  }
};

// What all threads of a block that resolves share.
struct Desk {
  Array<uint32_t, 2 * kWords> halves;  // of words, as warps find them
  Array<uint64_t, kWords> candidates;
  Array<uint64_t, kResolveThreads / kWarp> suppressed;  // by each warp's rows
  Marked kept, taken;
  Array<int32_t, kWindow> kinds;  // of the boxes kept; -1 for those that have no quota
  uint32_t is_any_wanted;
  Array<int, kResolveThreads / kWarp> sums;

  // A word of what warps found, of those that a window has.
  __device__ uint64_t word(int i, int words) const {
    return i < words ? halves[2 * i] | uint64_t{halves[2 * i + 1]} << kWarp : 0;
  }
};

// The boxes of a word that are kept, by one warp: of the candidates, those that no kept one before them suppresses. A
// lane has what the boxes of its own number and of 32 above it would suppress. Repeats the rule until nothing changes:
// after n rounds the first n boxes are right, and mostly a few rounds do.
__device__ inline uint64_t decide_word(uint64_t candidates, uint64_t of_low, uint64_t of_high) {
  uint64_t kept = candidates;
  for (;;) {
    const uint64_t mine = (kept >> lane() & 1 ? of_low : 0) | (kept >> (lane() + kWarp) & 1 ? of_high : 0);
    const uint64_t now = candidates & ~any_bits(mine);
    if (now == kept) return kept;
    kept = now;
  }
}

// Decides the boxes of a window, whose kept ones are none at first. All threads come here, and what they find is there
// for all. The bits of the next word are on their way while a word is decided: they do not depend on it.
template <class Coordinate>
__device__ void decide(const Suppression<Coordinate>& s, int64_t image, int members, Desk& desk) {
  constexpr int kRows = kWindow / kResolveThreads;
  const int thread = static_cast<int>(threadIdx.x), words = static_cast<int>(divide_up(members, kWord));
  const uint64_t* const bits = s.bits + image * s.words() * s.window();
  uint64_t of_row[kRows], of_low = 0, of_high = 0;  // of rows before the word; of rows of the word itself
  const auto load = [&](int word) {
    const uint64_t* const of_word = bits + word * s.window();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = i * kResolveThreads + thread;
      of_row[i] = word < words && row < word * kWord ? of_word[row] : 0;
    }
    if (warp() != 0) return;
    const int low = word * kWord + lane(), high = low + kWarp;
    of_low = low < members ? of_word[low] : 0;
    of_high = high < members ? of_word[high] : 0;
  };
  load(0);
  for (int word = 0; word < words; ++word) {
    const uint64_t candidates = desk.candidates[word], low = of_low, high = of_high;
    uint64_t mine = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = i * kResolveThreads + thread;
      if (row < word * kWord && desk.kept.has(row)) mine |= of_row[i];
    }
    load(word + 1);
    if (candidates == 0) continue;
    mine = any_bits(mine);
    if (lane() == 0) desk.suppressed[warp()] = mine;
    __syncthreads();
    if (warp() == 0) {
      const uint64_t all = any_bits(lane() < kResolveThreads / kWarp ? desk.suppressed[lane()] : 0);
      const uint64_t now = decide_word(candidates & ~all, low, high);
      if (lane() == 0) desk.kept.words[word] = now;
    }
    __syncthreads();
  }
}

// The lowest `most` of the bits that are set.
__device__ inline uint32_t lowest_bits(uint32_t bits, int most) {
  uint32_t rest = bits;
  for (int i = 0; i < most && rest; ++i) rest &= rest - 1;
  return bits ^ rest;
}

// Marks, by warps, which boxes of the window `holds(box)`.
template <class Coordinate, class Holds>
__device__ void mark(const Suppression<Coordinate>& s, Desk& desk, const Holds& holds) {
  for (int box = threadIdx.x; box < s.window(); box += kResolveThreads) {
    const uint32_t half = __ballot_sync(kAllLanes, holds(box));
    if (lane() == 0) desk.halves[box / kWarp] = half;
  }
}

// Takes of each kind as many of the kept boxes as are still wanted, into `halves`; a warp takes one kind after the
// other. All threads come here.
template <class Coordinate>
__device__ void take_quotas(const Suppression<Coordinate>& s, int64_t image, const int32_t* places, Desk& desk) {
  const int64_t* const order = s.order + image * s.count;
  for (int box = threadIdx.x; box < s.window(); box += kResolveThreads) {
    int64_t kind = -1;
    if (desk.kept.has(box)) kind = s.kinds ? s.kinds[image * s.count + order[places[box]]] : 0;
    desk.kinds[box] = kind >= 0 && kind < s.num_kinds ? static_cast<int32_t>(kind) : -1;
    if (box % kWarp == 0) desk.halves[box / kWarp] = 0;
  }
  if (threadIdx.x == 0) desk.is_any_wanted = 0;
  __syncthreads();
  for (int64_t kind = warp(); kind < s.num_kinds; kind += kResolveThreads / kWarp) {
    int wanted = s.left[image * s.num_kinds + kind];
    for (int half = 0; half < s.window() / kWarp && wanted > 0; ++half) {
      const uint32_t of_kind = __ballot_sync(kAllLanes, desk.kinds[half * kWarp + lane()] == kind);
      const uint32_t taken = lowest_bits(of_kind, wanted);
      if (lane() == 0 && taken) atomicOr(&desk.halves[half], taken);
      wanted -= __popc(taken);
    }
    __syncwarp();  // all lanes have read what is left
    if (lane() != 0) continue;
    s.left[image * s.num_kinds + kind] = wanted;
    if (wanted > 0) atomicOr(&desk.is_any_wanted, 1u);
  }
  __syncthreads();
}

// Chooses the window from a place on: the next boxes that are alive. Returns how many they are. All threads come here.
template <class Coordinate>
__device__ int choose_window(const Suppression<Coordinate>& s, int64_t image, int64_t from, Desk& desk) {
  const uint32_t* const alive = s.alive + image * s.padded() / kWarp;
  const int64_t words = s.padded() / kWarp, most = s.window();
  int64_t found = 0;
  for (int64_t start = from / kWarp; start < words && found < most; start += kResolveThreads) {
    const int64_t word = start + threadIdx.x;
    uint32_t bits = word < words ? alive[word] : 0;
    if (word == from / kWarp) bits &= kAllLanes << (from % kWarp);
    const int mine = __popc(bits), up_to = sum_up_to(mine);
    __syncthreads();  // the sums of the round before are still read
    if (lane() == kWarp - 1) desk.sums[warp()] = up_to;
    __syncthreads();
    int64_t rank = found + up_to - mine;
    for (int i = 0; i < kResolveThreads / kWarp; ++i) {
      if (i < warp()) rank += desk.sums[i];
      found += desk.sums[i];
    }
    for (; bits && rank < most; bits &= bits - 1, ++rank) {
      const int64_t place = word * kWarp + __ffs(static_cast<int>(bits)) - 1;
      s.places[image * kWindow + rank] = static_cast<int32_t>(place);
      if (rank == most - 1) s.next[image] = place + 1;
    }
  }
  if (threadIdx.x == 0) {
    s.first[image] = from;
    if (found < most) s.next[image] = s.padded();
  }
  return static_cast<int>(found < most ? found : most);
}

template <class Coordinate>
__global__ void __launch_bounds__(kResolveThreads) begin(Suppression<Coordinate> s) {
  DETKIT_SHARED(desk, Desk);
  const int64_t image = blockIdx.x;
  const int chosen = choose_window(s, image, 0, desk);
  if (threadIdx.x == 0) s.num_places[image] = chosen, s.is_done[image] = chosen == 0, s.num_result[image] = 0;
}

template <class Coordinate>
__global__ void __launch_bounds__(kResolveThreads) resolve(Suppression<Coordinate> s) {
  DETKIT_SHARED(desk, Desk);
  const int64_t image = blockIdx.x;
  if (s.is_done[image]) return;
  const int members = s.num_places[image];
  const int64_t next = s.next[image], found = s.num_result[image];
  const int32_t* const places = s.places + image * kWindow;
  mark(s, desk, [&](int box) {
    if (box >= members) return false;
    return (s.alive[(image * s.padded() + places[box]) / kWarp] >> (places[box] % kWarp) & 1) != 0;
  });
  __syncthreads();
  if (threadIdx.x < kWords) {
    desk.candidates[threadIdx.x] = desk.word(threadIdx.x, s.words());
    desk.kept.words[threadIdx.x] = 0;
  }
  __syncthreads();
  decide(s, image, members, desk);
  if (s.has_quota) take_quotas(s, image, places, desk);
  const bool is_any_wanted = !s.has_quota || desk.is_any_wanted;
  if (warp() == 0) {
    desk.taken.words[lane()] = s.has_quota ? desk.word(lane(), s.words()) : desk.kept.words[lane()];
    desk.kept.count();
    desk.taken.count();
  }
  __syncthreads();
  for (int box = threadIdx.x; box < members; box += kResolveThreads) {
    if (desk.kept.has(box)) s.kept[image * kWindow + desk.kept.rank(box)] = places[box];
    if (!desk.taken.has(box)) continue;
    const int64_t index = s.order[image * s.count + places[box]];
    if (s.mask) s.mask[image * s.count + index] = true;
    if (s.list) s.list[found + desk.taken.rank(box)] = index;
  }
  const int chosen = is_any_wanted ? choose_window(s, image, next, desk) : 0;
  if (threadIdx.x == 0) {
    s.num_places[image] = chosen;
    s.num_kept[image] = desk.kept.total();
    s.num_result[image] = found + desk.taken.total();
    s.is_done[image] = chosen == 0;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Their launches
// ---------------------------------------------------------------------------------------------------------------------

// The images that share the memory of a window.
inline int64_t images_at_once(int64_t images) { return images < 64 ? images : 64; }

// Needs the mask at zero, quotas filled and boxes arranged. A list is waited for anyway, so with one this asks now and
// then whether all is done, instead of starting what would end at once.
template <class Coordinate>
void suppress(const Suppression<Coordinate>& all, Stream stream) {
  constexpr int64_t kWindowsUnasked = 8;
  for (int64_t first = 0; first < all.images; first += images_at_once(all.images)) {
    const int64_t rest = all.images - first;
    const auto s = all.part(first, rest < images_at_once(all.images) ? rest : images_at_once(all.images));
    launch(begin<Coordinate>, s.images, kResolveThreads, stream, s);
    for (int64_t window = 0; window < s.windows(); ++window) {
      if (s.list && window && window % kWindowsUnasked == 0 && read_when_done(s.is_done, stream)) break;
      const Shares shares(s, window);
      launch(compare<Coordinate>, s.images * shares.blocks(), kCompareThreads, stream, s, window, shares);
      launch(resolve<Coordinate>, s.images, kResolveThreads, stream, s);
    }
  }
}

}  // namespace detkit
