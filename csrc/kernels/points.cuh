// Points over maps: random ones, and bilinear samples of maps and of packed masks at points.
// fastinst/ops/random_points.py and bilinear.py define them. Positions and samples are rounded as
// grid_sample rounds them on CPUs that have FMA, so that every device chooses the same points.
#pragma once

#include "common.cuh"

namespace fastinst {

// (0, 0) is the top left corner of a map, (1, 1) the bottom right one.
template <typename A>
struct alignas(2 * sizeof(A)) Point {
  A x, y;
};

namespace {

// Bytes in shared memory, so that what follows is aligned as well.
template <typename T>
__host__ __device__ constexpr size_t padded_bytes(size_t count) {
  return round_up<size_t>(sizeof(T) * count, 16);
}

// Copies with all threads of the block, which must meet before they read the target.
template <int kThreads, typename T>
__device__ __forceinline__ void copy_by_block(const T* __restrict__ source, int count,
                                              T* __restrict__ target) {
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += kThreads) target[i] = source[i];
}

__device__ __forceinline__ Point<float> random_point(unsigned long long seed, unsigned index) {
  unsigned x = (index * 0x9e3779b9u + static_cast<unsigned>(seed)) ^
               static_cast<unsigned>(seed >> 32);
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  x ^= x >> 16;
  return {((x & 0xffff) + 0.5f) / 65536, ((x >> 16) + 0.5f) / 65536};
}

// The two pixels of a row or column whose centres a point lies between, and their weights. The
// index of one that is outside is that of one inside: loads need no branch.
template <typename A>
struct Neighbours {
  int index[2];
  bool inside[2];
  A weight[2];

  __device__ __forceinline__ Neighbours(A coordinate, int size) {
    // However far a point lies outside, and if it is NaN, both of its pixels are outside as well.
    const A position = min(max(fma(coordinate, A(size), A(-0.5)), A(-2)), A(size));
    const A first = floor(position);
    weight[1] = position - first;
    weight[0] = A(1) - weight[1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pixel = static_cast<int>(first) + i;
      index[i] = min(max(pixel, 0), size - 1);
      inside[i] = pixel == index[i];
    }
  }
};

// The four pixels around a point, from the top left to the bottom right.
template <typename A>
struct Corners {
  Neighbours<A> columns, rows;

  __device__ __forceinline__ Corners(Point<A> point, int height, int width)
      : columns(point.x, width), rows(point.y, height) {}

  __device__ __forceinline__ int row(int corner) const { return rows.index[corner / 2]; }
  __device__ __forceinline__ int column(int corner) const { return columns.index[corner % 2]; }
  __device__ __forceinline__ bool inside(int corner) const {
    return columns.inside[corner % 2] && rows.inside[corner / 2];
  }
  __device__ __forceinline__ A weight(int corner) const {
    return columns.weight[corner % 2] * rows.weight[corner / 2];
  }
};

template <typename T, typename A>
__device__ __forceinline__ A sample_map(const T* map, int width, const Corners<A>& corners) {
  A sum = 0;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const A value = widen(map[corners.row(corner) * width + corners.column(corner)]);
    sum = fma(corners.inside(corner) ? value : A(0), corners.weight(corner), sum);
  }
  return sum;
}

// Of a mask [height, words], in which the lowest bit of a word is its first pixel.
template <typename A>
__device__ __forceinline__ A sample_mask(const unsigned* mask, int words,
                                         const Corners<A>& corners) {
  A sum = 0;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int column = corners.column(corner);
    const unsigned word = mask[corners.row(corner) * words + column / 32];
    if ((word >> column % 32 & 1) && corners.inside(corner)) sum += corners.weight(corner);
  }
  return sum;
}

}  // namespace
}  // namespace fastinst
