// bits = embeddings pixels^T + bias >= 0, without the sums ever leaving the chip: 16 bytes for each
// pixel where the logits of 100 queries would take 400.
//
// A block owns kRows embeddings, 16 for each warp, and 32 pixels, which make a word of each row. It
// walks through the channels in slices of kSlice, of which kStages are in shared memory: while one
// is multiplied, the next are copied. It has the form and the helpers of attention.cuh, with a
// token's channels in the place of a head's.
#pragma once

#include "attention.cuh"
#include "launch.cuh"

namespace fastinst {

template <typename T>
struct AttentionMaskParams {
  int batch, channels;
  Heads<const T> embeddings, pixels;  // of a single head
  const T* bias;                      // [B, embeddings], or null
  unsigned* bits;                     // [B, embeddings, ceil(pixels / 32)]
};

template <typename T>
using MaskBlock = AttentionBlock<T, sizeof(T) == 2 ? 7 : sizeof(T) == 4 ? 4 : 2, 3>;

template <typename T>
__global__ void __launch_bounds__(MaskBlock<T>::kThreads)
    attention_mask_kernel(AttentionMaskParams<T> params) {
  using Real = Accumulate<T>;
  using Block = MaskBlock<T>;
  constexpr int kStages = Block::kStages;
  constexpr int kStaged = (Block::kRows + kTileColumns) * Block::kStride;
  const int words = ceil_div(params.pixels.tokens, kTileColumns);
  const int row_blocks = ceil_div(params.embeddings.tokens, Block::kRows);
  // blockIdx.x -> (batch, block of rows, word)
  const int word = blockIdx.x % words;
  const int first_row = blockIdx.x / words % row_blocks * Block::kRows;
  const int batch = blockIdx.x / words / row_blocks;
  const int warp = threadIdx.x / kWarpSize;

  T* staged = shared_memory<T>();  // [kStages][embeddings, then pixels][kStride]
  Real* scratch = reinterpret_cast<Real*>(staged + kStages * kStaged) + warp * Block::kScratch;
  const Tokens<const T> embeddings = params.embeddings.of(batch, 0);
  const Tokens<const T> pixels = params.pixels.of(batch, 0);
  const int slices = ceil_div(params.channels, kSlice);
  const auto stage = [&](int slice) {
    if (slice < slices) {
      T* target = staged + slice % kStages * kStaged;
      stage_tokens<Block, Block::kRows>(target, embeddings, slice * kSlice, params.channels,
                                        [&](int row) {
                                          const int token = first_row + row;
                                          return token < embeddings.count ? token : -1;
                                        });
      stage_tokens<Block, kTileColumns>(target + Block::kRows * Block::kStride, pixels,
                                        slice * kSlice, params.channels, [&](int column) {
                                          const int token = word * kTileColumns + column;
                                          return token < pixels.count ? token : -1;
                                        });
    }
    __pipeline_commit();
  };

  WarpTile<T, kTileRows, kTileColumns> logits;
  logits.clear();
  for (int slice = 0; slice < kStages - 1; ++slice) stage(slice);
  for (int slice = 0; slice < slices; ++slice) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();
    stage(slice + kStages - 1);
    const T* rows = staged + slice % kStages * kStaged;
    logits.template multiply_add<kSlice, Order::kRowMajor, Order::kColumnMajor>(
        rows + warp * kTileRows * Block::kStride, Block::kStride,
        rows + Block::kRows * Block::kStride, Block::kStride);
  }

  Real values[kLaneValues];
  take_values<Block>(logits, scratch, values);
  const int row = first_row + warp * kTileRows + lane_row();
  const bool is_row = row < embeddings.count;
  const Real bias =
      params.bias && is_row ? widen(params.bias[batch * embeddings.count + row]) : Real(0);
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const unsigned is_attended = values[i] + bias >= 0;
    bits |= is_attended << (lane_column(i / 4) + i % 4);
  }
  bits |= __shfl_xor_sync(kFullWarp, bits, 1);
  const int left = pixels.count - word * kTileColumns;
  if (left < kTileColumns) bits &= (1u << left) - 1;
  if (is_row && threadIdx.x % 2 == 0) {
    params.bits[(static_cast<size_t>(batch) * embeddings.count + row) * words + word] = bits;
  }
}

#ifndef __CUDACC_RTC__
template <typename T>
void launch_attention_mask(const AttentionMaskParams<T>& params, cudaStream_t stream) {
  using Block = MaskBlock<T>;
  const unsigned blocks = params.batch * ceil_div(params.embeddings.tokens, Block::kRows) *
                          ceil_div(params.pixels.tokens, kTileColumns);
  constexpr size_t kShared =
      Block::kStages * (Block::kRows + kTileColumns) * Block::kStride * sizeof(T) +
      Block::kWarps * Block::kScratch * sizeof(Accumulate<T>);
  launch(attention_mask_kernel<T>, blocks, Block::kThreads, kShared, stream, params);
}
#endif

}  // namespace fastinst
