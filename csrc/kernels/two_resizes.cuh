// Two bilinear resizes in a row, as one linear map along each axis: to the padded input, and of its
// part that is the image to the output. PyTorch's values of them, bit for bit, and for most pixels
// a cheaper sum that differs by a known bound.
//
// As the first resize enlarges, two neighbours of the padded input read at most three neighbouring
// pixels of its source, and so does an index of the output: its Taps.
#pragma once

#include "common.cuh"

namespace fastinst {

// One axis of a resize: index i of the result reads the source around scale * (i + 0.5) - 0.5.
template <typename A>
struct ResizedAxis {
  int size;  // of the source
  A scale;   // source / result
};

template <typename A>
struct Resize {
  ResizedAxis<A> rows, columns;
  bool copies;  // both sizes stay, and PyTorch copies
};

template <typename A>
__host__ __device__ Resize<A> resize_between(int height, int width, int to_height, int to_width) {
  return {{height, A(height) / A(to_height)},
          {width, A(width) / A(to_width)},
          height == to_height && width == to_width};
}

namespace {

// What one index of a result reads of one axis of its source.
template <typename A>
struct Pair {
  int first, second;
  A first_weight, second_weight;
};

// As in PyTorch's upsample_bilinear2d, where nvcc fuses the product and the subtraction of 0.5.
template <typename A>
__device__ __forceinline__ Pair<A> pair_at(const ResizedAxis<A>& axis, int index) {
  const A at = fma(axis.scale, index + A(0.5), A(-0.5));
  const A source = at < A(0) ? A(0) : at;
  const int first = static_cast<int>(source);
  const A second_weight = source - first;
  return {first, first < axis.size - 1 ? first + 1 : first, A(1) - second_weight, second_weight};
}

// a * b + c * d, rounded as nvcc rounds it.
template <typename A>
__device__ __forceinline__ A mix(A a, A b, A c, A d) {
  return fma(a, b, c * d);
}

// One pixel of a resized image, as PyTorch computes it; source(row, column) gives the image.
template <typename A, typename Source>
__device__ __forceinline__ A resized(const Resize<A>& resize, int row, int column, Source source) {
  if (resize.copies) return source(row, column);
  const Pair<A> y = pair_at(resize.rows, row), x = pair_at(resize.columns, column);
  const auto along_x = [&](int from) {
    return mix(x.first_weight, source(from, x.first), x.second_weight, source(from, x.second));
  };
  return mix(y.first_weight, along_x(y.first), y.second_weight, along_x(y.second));
}

// What one index of the output reads of the first source, through both resizes: the weights of
// three neighbours. If they are more, when the first resize shrinks, a weight is NaN, and so is the
// sum: then only the long way is right.
template <typename A>
struct alignas(16) Taps {
  A weights[3];
  int first;
};

template <typename A>
__device__ __forceinline__ Taps<A> taps_at(const ResizedAxis<A>& to_padded,
                                           const ResizedAxis<A>& to_output, int index) {
  const Pair<A> outer = pair_at(to_output, index);
  const Pair<A> inner[2] = {pair_at(to_padded, outer.first), pair_at(to_padded, outer.second)};
  const A outer_weights[2] = {outer.first_weight, outer.second_weight};
  const int first = inner[0].first;
  Taps<A> taps{{0, 0, 0}, first};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const A first_weight = outer_weights[i] * inner[i].first_weight;
    const A second_weight = outer_weights[i] * inner[i].second_weight;
#pragma unroll
    for (int tap = 0; tap < 3; ++tap) {
      if (inner[i].first == first + tap) taps.weights[tap] += first_weight;
      if (inner[i].second == first + tap) taps.weights[tap] += second_weight;
    }
    if (inner[i].second > first + 2) taps.weights[0] = infinity<A>() - infinity<A>();
  }
  return taps;
}

// By how much the sum of taps may differ from PyTorch's value. Both round some 20 times, each time
// by half a unit in the last place of the largest magnitude that is read, at most. Where that is no
// longer so (products that underflow, sums that overflow, infinities), nothing is certain.
__device__ __forceinline__ float uncertainty(float magnitude) {
  return magnitude < 0x1p126f ? magnitude * 0x1p-19f + 0x1p-126f : infinity<float>();
}
__device__ __forceinline__ double uncertainty(double magnitude) {
  return magnitude < 0x1p1022 ? magnitude * 0x1p-48 + 0x1p-1022 : infinity<double>();
}

}  // namespace
}  // namespace fastinst
