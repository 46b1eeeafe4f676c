// What the gradients of attention have to know of every query: the reference and the sum of its
// weights, merged from the chunks that attention_kernel leaves when it has no value, and delta, the
// sum of grad * output. For half also the largest |grad| of all, by which grad_scores are scaled.
#pragma once

#include "attention_forward.cuh"

namespace fastinst {

// Weights are multiplied by 2^kWeightBits, and in grad_scores by a power of two that brings the
// largest element of grad to 2^kGradBits: half keeps 11 bits only of what is above 2^-14.
template <typename T>
constexpr int kWeightBits = 0;
template <>
constexpr int kWeightBits<__half> = 10;
constexpr int kGradBits = -8;

template <typename T>
struct AttentionGradientParams {
  HeadShape shape;
  Heads<const T> query, key, value, grad, output;
  Attend attend;
  Accumulate<T> scale;        // 1 / sqrt(channels)
  Accumulate<T> score_scale;  // log2(e) / sqrt(channels), bit by bit the forward kernel's
  const Accumulate<T>* partial_statistics;  // as the forward kernel leaves them
  int statistics_chunks;
  Accumulate<T>* query_statistics;  // [3, B, heads, queries]: reference, 2^kHeadroom / sum, delta
  int* largest_grad;                // 0 before, the largest |grad|'s bits after; used by half only
};

constexpr int kStatisticsWarps = 8;

// A warp owns a query at a time, its lanes first a chunk each and then a channel each.
template <typename T>
__global__ void __launch_bounds__(kStatisticsWarps * kWarpSize)
    query_statistics_kernel(AttentionGradientParams<T> params) {
  using Real = Accumulate<T>;
  const HeadShape& shape = params.shape;
  const int queries = params.query.tokens, rows = shape.batch * shape.heads * queries;
  const int lane = threadIdx.x % kWarpSize;
  Real largest = 0;
  for (int row = blockIdx.x * kStatisticsWarps + threadIdx.x / kWarpSize; row < rows;
       row += gridDim.x * kStatisticsWarps) {
    // row -> (batch, head, query)
    const int query = row % queries, head = row / queries % shape.heads;
    const int batch = row / queries / shape.heads;
    Real reference = -infinity<Real>(), sum = 0;
    for (int chunk = lane; chunk < params.statistics_chunks; chunk += kWarpSize) {
      const Real* own = params.partial_statistics + 2 * (static_cast<size_t>(chunk) * rows + row);
      reference = max(reference, own[0]);
    }
    reference = warp_reduce(reference, Maximum());
    for (int chunk = lane; chunk < params.statistics_chunks; chunk += kWarpSize) {
      const Real* own = params.partial_statistics + 2 * (static_cast<size_t>(chunk) * rows + row);
      sum += power_of_two(params.score_scale * (own[0] - reference)) * own[1];
    }
    sum = warp_reduce(sum, Sum());

    const T* grad = params.grad.of(batch, head).at(query);
    const T* output = params.output.of(batch, head).at(query);
    Real delta = 0;
    for (int channel = lane; channel < shape.channels; channel += kWarpSize) {
      const Real value = widen(grad[channel]);
      delta += value * widen(output[channel]);
      largest = max(largest, value < 0 ? -value : value);
    }
    delta = warp_reduce(delta, Sum());
    if (lane == 0) {
      params.query_statistics[row] = reference;
      params.query_statistics[rows + row] = power_of_two(static_cast<Real>(kHeadroom<T>)) / sum;
      params.query_statistics[2 * rows + row] = delta;
    }
  }
  if constexpr (kWeightBits<T> > 0) {
    __shared__ Real scratch[kStatisticsWarps];
    largest = block_reduce<kStatisticsWarps * kWarpSize>(largest, Maximum(), scratch);
    // Numbers that are not negative are ordered as their bits.
    if (threadIdx.x == 0) atomicMax(params.largest_grad, __float_as_int(largest));
  }
}

#ifndef __CUDACC_RTC__
template <typename T>
void launch_query_statistics(const AttentionGradientParams<T>& params, cudaStream_t stream) {
  // At most so many blocks, since each has one atomic operation.
  constexpr int kMostBlocks = 512;
  const int rows = params.shape.batch * params.shape.heads * params.query.tokens;
  const int blocks = ceil_div(rows, kStatisticsWarps);
  launch(query_statistics_kernel<T>, blocks < kMostBlocks ? blocks : kMostBlocks,
         kStatisticsWarps * kWarpSize, 0, stream, params);
}
#endif

}  // namespace fastinst
