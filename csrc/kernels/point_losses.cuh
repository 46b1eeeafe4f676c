// Binary cross-entropy and dice of mask logits against packed masks, at points, and the gradient of
// the logits. fastinst/ops/point_losses.py defines them.
//
// A block owns a pair of map and mask, and copies both into shared memory as far as they fit: four
// logits and two words are gathered for every point, from anywhere. Sums are added up in a fixed
// order. The gradient takes the points twice, for dice's derivative contains the first pass' sums;
// the second adds to four pixels for each point, by atomics in Accumulate<T>, in shared memory if
// the map fits: its last bits depend on their order.
//
// At 560 pairs of 80 x 108 and 640 x 864, and 12544 points of each: 7 million points of some 230
// instructions; a block's copies are 35 and 69 KB, and the points are 56 MB. Predicted, not
// measured: 0.08 ms on an H200 and 0.15 ms on a V100, by instructions; the gradient 0.25 and 0.45
// ms, by as many again and its atomics.
#pragma once

#include "launch.cuh"
#include "points.cuh"

namespace fastinst {

template <typename T>
struct PointLossesParams {
  using A = Accumulate<T>;
  const T* logits;  // [pairs, height, width]
  const unsigned* masks;  // [masks, mask_height, mask_words]
  const long long* mask_index;  // [pairs]
  const Point<A>* points;  // [pairs or 1, count]
  int pairs, height, width, mask_height, mask_words, count;
  bool shares_points;
  bool copy_map, copy_mask;  // into shared memory
};

template <typename T>
struct PointLossesForwardParams {
  PointLossesParams<T> common;
  Accumulate<T>* bce;  // [pairs]
  Accumulate<T>* dice;  // [pairs]
};

template <typename T>
struct PointLossesBackwardParams {
  PointLossesParams<T> common;
  const Accumulate<T>* grad_bce;  // [pairs]
  const Accumulate<T>* grad_dice;  // [pairs]
  Accumulate<T>* sums;  // [pairs, height, width], or null for shared memory; may be grad_logits
  T* grad_logits;  // [pairs, height, width]
};

namespace {

constexpr int kPointThreads = 1024;
constexpr int kPointBlocks = 1;  // shared memory has room for few: no registers need be spared

// What a block reads of its pair.
template <typename T>
struct Pair {
  using A = Accumulate<T>;
  const T* map;
  const unsigned* mask;
  const Point<A>* points;
};

// Copies to `shared` what is to be there; the block must meet before it reads the pair.
template <typename T>
__device__ __forceinline__ Pair<T> pair_of_block(const PointLossesParams<T>& params,
                                                 unsigned char* shared) {
  const int pixels = params.height * params.width;
  const int words = params.mask_height * params.mask_words;
  Pair<T> pair;
  pair.map = params.logits + static_cast<long long>(blockIdx.x) * pixels;
  pair.mask = params.masks + params.mask_index[blockIdx.x] * words;
  pair.points = params.points;
  if (!params.shares_points) pair.points += static_cast<long long>(blockIdx.x) * params.count;
  if (params.copy_map) {
    T* copy = reinterpret_cast<T*>(shared);
    copy_by_block<kPointThreads>(pair.map, pixels, copy);
    pair.map = copy;
    shared += padded_bytes<T>(pixels);
  }
  if (params.copy_mask) {
    unsigned* copy = reinterpret_cast<unsigned*>(shared);
    copy_by_block<kPointThreads>(pair.mask, words, copy);
    pair.mask = copy;
  }
  return pair;
}

// exp(-|x|), of which all is made that follows.
template <typename A>
__device__ __forceinline__ A small_exponential(A x) {
  return exp(x < A(0) ? x : -x);
}

template <typename A>
struct PointSums {
  A bce, overlap, prediction, target;  // of s t, s and t with s = sigmoid(x)
};

// Over the pair's points; the same in every thread, and on every run.
template <typename T>
__device__ __forceinline__ PointSums<Accumulate<T>> sum_over_points(
    const PointLossesParams<T>& params, const Pair<T>& pair, Accumulate<T>* scratch) {
  using A = Accumulate<T>;
  PointSums<A> sums{};
  for (int i = threadIdx.x; i < params.count; i += kPointThreads) {
    const Point<A> point = pair.points[i];
    const Corners<A> corners(point, params.height, params.width);
    const Corners<A> mask_corners(point, params.mask_height, 32 * params.mask_words);
    const A x = sample_map(pair.map, params.width, corners);
    const A t = sample_mask(pair.mask, params.mask_words, mask_corners);
    const A small = small_exponential(x);
    const A s = (x < A(0) ? small : A(1)) / (A(1) + small);
    sums.bce += (x < A(0) ? A(0) : x) - x * t + log1p(small);
    sums.overlap += s * t;
    sums.prediction += s;
    sums.target += t;
  }
  return {block_reduce<kPointThreads>(sums.bce, Sum(), scratch),
          block_reduce<kPointThreads>(sums.overlap, Sum(), scratch),
          block_reduce<kPointThreads>(sums.prediction, Sum(), scratch),
          block_reduce<kPointThreads>(sums.target, Sum(), scratch)};
}

template <typename T>
__global__ void __launch_bounds__(kPointThreads, kPointBlocks)
point_losses_kernel(PointLossesForwardParams<T> params) {
  using A = Accumulate<T>;
  __shared__ A scratch[kPointThreads / kWarpSize];
  const Pair<T> pair = pair_of_block(params.common, shared_memory<unsigned char>());
  __syncthreads();
  const PointSums<A> sums = sum_over_points(params.common, pair, scratch);
  if (threadIdx.x != 0) return;
  params.bce[blockIdx.x] = sums.bce / A(params.common.count);
  params.dice[blockIdx.x] =
      A(1) - (2 * sums.overlap + A(1)) / (sums.prediction + sums.target + A(1));
}

template <typename T>
__global__ void __launch_bounds__(kPointThreads, kPointBlocks)
point_losses_backward_kernel(PointLossesBackwardParams<T> params) {
  using A = Accumulate<T>;
  __shared__ A scratch[kPointThreads / kWarpSize];
  const PointLossesParams<T>& common = params.common;
  const int pixels = common.height * common.width;
  const long long first_pixel = static_cast<long long>(blockIdx.x) * pixels;
  unsigned char* shared = shared_memory<unsigned char>();
  A* gradient = params.sums + first_pixel;
  if (params.sums == nullptr) {
    gradient = reinterpret_cast<A*>(shared);
    shared += padded_bytes<A>(pixels);
  }
  for (int i = threadIdx.x; i < pixels; i += kPointThreads) gradient[i] = 0;
  const Pair<T> pair = pair_of_block(common, shared);
  __syncthreads();

  // dice = 1 - overlap / total
  const PointSums<A> sums = sum_over_points(common, pair, scratch);
  const A total = sums.prediction + sums.target + A(1), overlap = 2 * sums.overlap + A(1);
  const A by_bce = params.grad_bce[blockIdx.x] / A(common.count);
  const A by_dice = params.grad_dice[blockIdx.x] / (total * total);
  for (int i = threadIdx.x; i < common.count; i += kPointThreads) {
    const Point<A> point = pair.points[i];
    const Corners<A> corners(point, common.height, common.width);
    const Corners<A> mask_corners(point, common.mask_height, 32 * common.mask_words);
    const A x = sample_map(pair.map, common.width, corners);
    const A t = sample_mask(pair.mask, common.mask_words, mask_corners);
    const A small = small_exponential(x), inverse = A(1) / (A(1) + small);
    const A s = (x < A(0) ? small : A(1)) * inverse;
    const A s_by_x = small * inverse * inverse;
    const A by_x = by_bce * (s - t) + by_dice * (overlap - 2 * t * total) * s_by_x;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      A* pixel = gradient + corners.row(corner) * common.width + corners.column(corner);
      if (corners.inside(corner)) atomicAdd(pixel, corners.weight(corner) * by_x);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pixels; i += kPointThreads) {
    params.grad_logits[first_pixel + i] = narrow<T>(gradient[i]);
  }
}

}  // namespace

#ifndef __CUDACC_RTC__

// What of a pair is in shared memory, by what gains most there: its gradient, if it has one, then
// its map, then its mask.
struct PointLossesPlan {
  bool sums_in_shared, copy_map, copy_mask;
};

template <typename T>
PointLossesPlan plan_point_losses(size_t pixels, size_t words, bool has_gradient, size_t limit) {
  size_t left = limit - (kPointThreads / kWarpSize) * sizeof(Accumulate<T>);
  const auto take = [&](size_t bytes) {
    if (bytes > left) return false;
    left -= bytes;
    return true;
  };
  PointLossesPlan plan{};
  plan.sums_in_shared = has_gradient && take(padded_bytes<Accumulate<T>>(pixels));
  plan.copy_map = take(padded_bytes<T>(pixels));
  plan.copy_mask = take(padded_bytes<unsigned>(words));
  return plan;
}

template <typename T>
size_t pair_bytes(const PointLossesParams<T>& params) {
  const size_t pixels = static_cast<size_t>(params.height) * params.width;
  const size_t words = static_cast<size_t>(params.mask_height) * params.mask_words;
  return (params.copy_map ? padded_bytes<T>(pixels) : 0) +
         (params.copy_mask ? padded_bytes<unsigned>(words) : 0);
}

template <typename T>
void launch_point_losses(const PointLossesForwardParams<T>& params, cudaStream_t stream) {
  launch(point_losses_kernel<T>, params.common.pairs, kPointThreads, pair_bytes(params.common),
         stream, params);
}

template <typename T>
void launch_point_losses_backward(const PointLossesBackwardParams<T>& params,
                                  cudaStream_t stream) {
  const size_t pixels = static_cast<size_t>(params.common.height) * params.common.width;
  const size_t shared = pair_bytes(params.common) +
                        (params.sums == nullptr ? padded_bytes<Accumulate<T>>(pixels) : 0);
  launch(point_losses_backward_kernel<T>, params.common.pairs, kPointThreads, shared, stream,
         params);
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
