// Points chosen by importance: of many random points those whose logit is nearest 0.
//
// One map after the other: its cells (bilinear.h), then the magnitudes of its candidates' samples
// as keys, then the key of the last candidate to be chosen, and those up to it in order. Candidates
// are hashes of their numbers, computed where they are needed and never stored; what is kept of one
// is its key, so that 37632 of them lie in the second cache.
//
// With AVX-512 sixteen candidates take some 100 instructions, half of them for the load and the
// transposition of their cells; a map with 37632 of them takes 0.25 million, the search for the
// last key, once through all and 90 times through some percent of them, a tenth of that.

#include "uncertain_points.h"

#include "bilinear.h"
#include "buffer.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

using namespace uncertain_points;

// Bits of numbers that are not negative, as integers, are in the numbers' order; then comes NaN,
// with many bit patterns, of which the first stands for all.
template <typename T>
using Key = Int<T>;
template <typename T>
constexpr Key<T> kLastKey = Key<T>(~uint64_t(0) >> (65 - 8 * sizeof(T)));
template <typename T>
constexpr Key<T> kNaNKey = sizeof(T) == 8 ? Key<T>(0x7ff0000000000001) : Key<T>(0x7f800001);

// Integers as wide as T, with the arithmetic modulo 2^32 or 2^64 that hashing needs.
template <typename T>
struct Unsigned;
template <>
struct Unsigned<float> {
  typedef uint32_t type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Unsigned<double> {
  typedef uint64_t type __attribute__((vector_size(kVectorBytes)));
};

// Points number ... number + kLanes - 1 of a seed; as in fastinst/ops/random_points.py.
template <typename T>
void random_points(int64_t seed, Ints<T> number, Vec<T>& x, Vec<T>& y) {
  using Hash = typename Unsigned<T>::type;
  constexpr uint32_t kLow = 0xffffffff;
  Hash hash = bit_cast<Hash>(number) * 0x9e3779b9u + uint32_t(seed);
  hash = (hash & kLow) ^ uint32_t(uint64_t(seed) >> 32);
  hash = ((hash ^ hash >> 16) * 0x7feb352du) & kLow;
  hash = ((hash ^ hash >> 15) * 0x846ca68bu) & kLow;
  hash = hash ^ hash >> 16;
  x = (__builtin_convertvector(bit_cast<Ints<T>>(hash & 0xffffu), Vec<T>) + T(0.5)) * T(0x1p-16);
  y = (__builtin_convertvector(bit_cast<Ints<T>>(hash >> 16), Vec<T>) + T(0.5)) * T(0x1p-16);
}

// The keys of all candidates, and behind them the last of all keys, to fill a vector.
template <typename T>
void find_keys(const T* cells, int height, int width, int64_t seed, int candidates, Key<T>* keys) {
  for (int first = 0; first < candidates; first += kLanes<T>) {
    Vec<T> x, y;
    random_points<T>(seed, lane_numbers<T>() + first, x, y);
    const Vec<T> logit = sample<T>(cells, width, between<T>(x, width), between<T>(y, height));
    Ints<T> key = bit_cast<Ints<T>>(logit) & kLastKey<T>;  // without the sign
    key = min(key, Ints<T>{} + kNaNKey<T>);
    key = lane_numbers<T>() < Key<T>(candidates - first) ? key : Ints<T>{} + kLastKey<T>;
    __builtin_memcpy(keys + first, &key, sizeof key);
  }
}

// The n-th smallest of the keys, n from 1 on: the largest number that fewer than n are below,
// bit by bit.
template <typename K>
K nth_key(const K* keys, int count, int n) {
  K limit = 0;
  for (int bit = 8 * int(sizeof(K)) - 2; bit >= 0; --bit) {
    const K candidate = limit | K(1) << bit;
    int below = 0;
    for (int i = 0; i < count; ++i) below += keys[i] < candidate;
    if (below < n) limit = candidate;
  }
  return limit;
}

// The same of many keys in random order. The first are a sample of all, and bound where the n-th
// is, so that it must be looked for among some percent of the keys only, which `inside` has room
// for and a vector more. Should it not be between the bounds, all keys are searched.
template <typename T>
Key<T> nth_of_many(const Key<T>* keys, int count, int n, Key<T>* inside) {
  constexpr int kSample = 1024, kSpread = 80;  // 5 standard deviations of a rank, or more
  const int rank = int(int64_t(n) * kSample / count);
  if (count < 4 * kSample) return nth_key(keys, count, n);
  const Key<T> low = rank > kSpread ? nth_key(keys, kSample, rank - kSpread) : 0;
  const Key<T> high =
      rank + kSpread < kSample ? nth_key(keys, kSample, rank + kSpread) : kLastKey<T>;
  Ints<T> below{};
  int found = 0;
  for (int i = 0; i < count; i += kLanes<T>) {
    Ints<T> key;
    __builtin_memcpy(&key, keys + i, sizeof key);
    below -= key < low;
    found += store_chosen<T>(inside + found, key, lane_bits((key >= low) & (key <= high)));
  }
  int64_t left = n;
  for (int i = 0; i < kLanes<T>; ++i) left -= below[i];
  if (left < 1 || left > found) return nth_key(keys, count, n);
  return nth_key(inside, found, int(left));
}

// The numbers of the n smallest keys, ascending; of equal ones the first. `numbers` has room for a
// vector more.
template <typename T>
void choose(const Key<T>* keys, int count, int n, Key<T> limit, int32_t* numbers) {
  int equal = n;
  for (int i = 0; i < count; ++i) equal -= keys[i] < limit;
  for (int first = 0, found = 0; found < n; first += kLanes<T>) {
    Ints<T> key;
    __builtin_memcpy(&key, keys + first, sizeof key);
    uint32_t bits = lane_bits(key < limit);
    uint32_t others = lane_bits(key == limit);
    for (; others != 0 && equal > 0; others &= others - 1, --equal) bits |= others & -others;
    found += store_chosen<float>(numbers + found, lane_numbers<float>() + first, bits);
  }
}

void write_points(int64_t seed, Ints<float> number, int count, float* to) {
  Vec<float> x, y;
  random_points<float>(seed, number, x, y);
  const Vec<float> first = interleave<float, false>(x, y), last = interleave<float, true>(x, y);
  constexpr int n = kLanes<float>;
  if (count >= n) {
    store(to, first);
    store(to + n, last);
  } else {
    store_first(to, first, min(2 * count, n));
    store_first(to + n, last, max(2 * count - n, 0));
  }
}

}  // namespace

template <typename T>
void choose_points(const Params<T>& params, int64_t begin, int64_t end) {
  const int height = params.height, width = params.width, candidates = params.candidates;
  const int important = params.important;
  Buffer<T> cells(4 * count_cells(height, width));
  Buffer<Key<T>> keys(candidates + kLanes<T>), inside(candidates + 2 * kLanes<T>);
  Buffer<int32_t> numbers(important + kLanes<float>);
  for (int64_t map = begin; map < end; ++map) {
    const int64_t seed = params.seeds[map];
    float* chosen = params.chosen + map * params.points * 2;
    if (important > 0) {
      lay_out_cells(params.logits + map * height * width, height, width, (T*)cells);
      find_keys<T>(cells, height, width, seed, candidates, keys);
      const Key<T> limit = nth_of_many<T>(keys, candidates, important, inside);
      choose<T>(keys, candidates, important, limit, numbers);
    }
    for (int i = 0; i < important; i += kLanes<float>) {
      Ints<float> number;
      __builtin_memcpy(&number, numbers + i, sizeof number);
      write_points(seed, number, important - i, chosen + 2 * i);
    }
    for (int i = important; i < params.points; i += kLanes<float>) {
      const Ints<float> number = lane_numbers<float>() + (candidates + i - important);
      write_points(seed, number, params.points - i, chosen + 2 * i);
    }
  }
}

template void choose_points<float>(const Params<float>&, int64_t, int64_t);
template void choose_points<double>(const Params<double>&, int64_t, int64_t);

}  // namespace FASTINST_ISA
}  // namespace fastinst
