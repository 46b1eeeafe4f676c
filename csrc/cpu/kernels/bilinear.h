// Bilinear samples of maps at points of the unit square, as F.grid_sample (align_corners=False,
// zeros outside) takes them, and their transpose.
//
// A map [height, width] is laid out as cells: cell (i, j) is the square between the centres of
// pixels i - 1, i and j - 1, j, and holds its four corners side by side, zeros outside of the map.
// A point lies in one of the (height + 1) (width + 1) cells, so that it takes a single load of four
// numbers, without any question about the border, instead of four gathers; and a square of four
// such loads is transposed in registers. For tens of thousands of points in a map of thousands of
// pixels, the cells cost little and lie in the first or the second cache.

#pragma once

#include "../vec.h"
#include "lanes.h"

namespace fastinst {
namespace FASTINST_ISA {

// Along one axis of a map: the cell that each of kLanes points lies in, 0 .. size, and the weights
// of its two ends.
template <typename T>
struct Between {
  Ints<T> cell;
  Vec<T> weights[2];
};

// Points outside of [0, 1], however far, and NaN still are in a cell, with all weight outside of
// the map. The fraction is not taken from `place`, which in a large map has lost some of its bits.
template <typename T>
inline Between<T> between(Vec<T> at, int size) {
  const Vec<T> place = min(max(at * T(size) + T(0.5), Vec<T>{}), broadcast(T(size)));
  Between<T> b;
  b.cell = __builtin_convertvector(place, Ints<T>);
  const Vec<T> fraction = at * T(size) + (T(0.5) - __builtin_convertvector(b.cell, Vec<T>));
  b.weights[1] = min(max(fraction, Vec<T>{}), broadcast(T(1)));
  b.weights[0] = 1 - b.weights[1];
  return b;
}

inline int64_t count_cells(int height, int width) { return int64_t(height + 1) * (width + 1); }

// `cells` has room for count_cells() of four numbers each.
template <typename T>
inline void lay_out_cells(const T* map, int height, int width, T* cells) {
  for (int row = 0; row <= height; ++row) {
    const T* ends[2] = {row > 0 ? map + int64_t(row - 1) * width : nullptr,
                        row < height ? map + int64_t(row) * width : nullptr};
    T* first = cells + count_cells(row - 1, width) * 4;
    T* last = first + 4 * width;
    for (int end = 0; end < 2; ++end) {
      const T* from = ends[end];
      T* to = first + 2 * end;
      to[0] = 0;
      to[1] = from ? from[0] : 0;
      for (int x = 1; x < width; ++x) {
        T pair[2] = {};
        if (from) __builtin_memcpy(pair, from + x - 1, sizeof pair);
        __builtin_memcpy(to + 4 * x, pair, sizeof pair);
      }
      last[2 * end] = from ? from[width - 1] : 0;
      last[2 * end + 1] = 0;
    }
  }
}

// The transpose of lay_out_cells: each pixel is the sum of the four corners that it was copied to.
template <typename T>
inline void add_up_cells(const T* cells, int height, int width, T* map) {
  for (int row = 0; row < height; ++row) {
    const T* above = cells + count_cells(row - 1, width) * 4;
    const T* below = cells + count_cells(row, width) * 4;
    for (int x = 0; x < width; ++x) {
      map[int64_t(row) * width + x] =
          (above[4 * x + 3] + above[4 * x + 6]) + (below[4 * x + 1] + below[4 * x + 4]);
    }
  }
}

// Corner c of kLanes cells in corners[c].
template <typename T>
inline void load_corners(const T* cells, Ints<T> cell, Vec<T> (&corners)[4]) {
  for (int c = 0; c < 4; ++c) {
    T lanes[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = cells[4 * cell[i] + c];
    corners[c] = load(lanes);
  }
}
#if defined(__SSE2__)
template <>
inline void load_corners<float>(const float* cells, Ints<float> cell, Vec<float> (&corners)[4]) {
  int32_t number[kLanes<float>];
  __builtin_memcpy(number, &cell, sizeof number);
  Vec<float> joined[4];
  for (int k = 0; k < 4; ++k) {
    constexpr int kJoined = kLanes<float> / 4;
    __m128 one[kJoined];
    for (int i = 0; i < kJoined; ++i) one[i] = _mm_loadu_ps(cells + 4 * number[k * kJoined + i]);
#if defined(__AVX512F__)
    joined[k] = (Vec<float>)_mm512_insertf32x8(
        _mm512_castps256_ps512(_mm256_set_m128(one[1], one[0])),
        _mm256_set_m128(one[3], one[2]), 1);
#elif defined(__AVX2__)
    joined[k] = (Vec<float>)_mm256_set_m128(one[1], one[0]);
#else
    joined[k] = (Vec<float>)one[0];
#endif
  }
  // Twice the last bit of a number's place, which says what corner it is, is made the first.
  for (int round = 0; round < 2; ++round) {
    for (int k = 0; k < 4; ++k) {
      const Vec<float> a = joined[2 * (k % 2)], b = joined[2 * (k % 2) + 1];
      corners[k] = k < 2 ? every_second<float, false>(a, b) : every_second<float, true>(a, b);
    }
    for (int k = 0; k < 4; ++k) joined[k] = corners[k];
  }
}
#endif

template <typename T>
inline Vec<T> sample(const T* cells, int width, const Between<T>& x, const Between<T>& y) {
  Vec<T> corners[4];
  load_corners<T>(cells, y.cell * (width + 1) + x.cell, corners);
  const Vec<T> above = corners[0] * x.weights[0] + corners[1] * x.weights[1];
  const Vec<T> below = corners[2] * x.weights[0] + corners[3] * x.weights[1];
  return above * y.weights[0] + below * y.weights[1];
}

// The transpose of `sample`: adds kLanes gradients of samples to those of the cells, lane by lane,
// for several may lie in one cell.
template <typename T>
inline void add_to_cells(Vec<T> gradient, int width, const Between<T>& x, const Between<T>& y,
                         T* cells) {
  typedef T Corners __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));
  constexpr int n = kLanes<T>;
  const Ints<T> cell = y.cell * (width + 1) + x.cell;
  const Vec<T> above = gradient * y.weights[0], below = gradient * y.weights[1];
  Vec<T> corners[4] = {above * x.weights[0], above * x.weights[1], below * x.weights[0],
                       below * x.weights[1]};
  // Transposed as in load_corners, backwards.
  for (int round = 0; round < 2; ++round) {
    const Vec<T> before[4] = {corners[0], corners[1], corners[2], corners[3]};
    for (int k = 0; k < 2; ++k) {
      corners[2 * k] = interleave<T, false>(before[k], before[k + 2]);
      corners[2 * k + 1] = interleave<T, true>(before[k], before[k + 2]);
    }
  }
  T joined[4 * n];
  Int<T> number[n];
  for (int k = 0; k < 4; ++k) store(joined + k * n, corners[k]);
  __builtin_memcpy(number, &cell, sizeof number);
  for (int i = 0; i < n; ++i) {
    Corners* sum = reinterpret_cast<Corners*>(cells + 4 * number[i]);
    *sum += *reinterpret_cast<const Corners*>(joined + 4 * i);
  }
}

// kLanes points (x, y), of which only the first `count` are read; (0, 0) for the others.
template <typename T>
inline void load_points(const T* points, int count, Vec<T>& x, Vec<T>& y) {
  constexpr int n = kLanes<T>;
  const bool whole = count >= n;
  const Vec<T> a = whole ? load(points) : load_first(points, min(2 * count, n));
  const Vec<T> b = whole ? load(points + n) : load_first(points + n, max(2 * count - n, 0));
  x = every_second<T, false>(a, b);
  y = every_second<T, true>(a, b);
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
