// Adds up, in a fixed order, what the blocks of several chunks have left of a gradient.
#pragma once

#include "attention.cuh"
#include "launch.cuh"

namespace fastinst {

constexpr int kSumThreads = 256;

// target = the sum of its parts, [chunks, B, heads, tokens, channels]. A thread owns one channel.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    sum_chunks_kernel(HeadShape shape, Heads<T> target, const Accumulate<T>* parts, int chunks) {
  const int rows = shape.batch * shape.heads * target.tokens;
  const int index = blockIdx.x * kSumThreads + threadIdx.x;
  // index -> (batch, head, token; channel)
  const int row = index / shape.channels, channel = index % shape.channels;
  if (row >= rows) return;
  Accumulate<T> sum = 0;
#pragma unroll 4
  for (int chunk = 0; chunk < chunks; ++chunk) {
    sum += parts[(static_cast<size_t>(chunk) * rows + row) * shape.channels + channel];
  }
  const int token = row % target.tokens, head = row / target.tokens % shape.heads;
  target.of(row / target.tokens / shape.heads, head).at(token)[channel] = narrow<T>(sum);
}

#ifndef __CUDACC_RTC__
// Without parts there was one chunk, which has written the target.
template <typename T>
void launch_sum_chunks(const HeadShape& shape, const Heads<T>& target, const Accumulate<T>* parts,
                       int chunks, cudaStream_t stream) {
  if (parts == nullptr) return;
  const int values = shape.batch * shape.heads * target.tokens * shape.channels;
  launch(sum_chunks_kernel<T>, ceil_div(values, kSumThreads), kSumThreads, 0, stream, shape, target,
         parts, chunks);
}
#endif

}  // namespace fastinst
