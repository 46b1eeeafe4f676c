// What the attention kernels share: how a block divides its work, how heads come to shared memory,
// and which queries attend where.
//
// A block owns kRows rows (queries, or pixels) of one head, 16 for each of its warps, and walks
// through the columns that these meet (keys, or queries), kTileColumns at a time. A warp scores its
// rows against such a tile by WarpTile, writes the scores to a scratch of its own, and reads them
// back as `kLaneValues` numbers in each lane: lanes 2 r and 2 r + 1 hold row r, alternately four
// columns each, so that a lane knows its row without knowing how tensor cores keep a tile.
//
// Heads are taken in slices of kSlice channels, of which the model's heads have one: then the rows
// stay in shared memory, and columns are copied kStages - 1 tiles ahead of their use. Wider heads
// take more slices, one after the other, and as many blocks; narrower ones are filled up with
// zeros. Everything moves in vectors: tokens are at multiples of 16 bytes and have a multiple of 8
// channels.
#pragma once

#include <cuda_pipeline.h>

#include "common.cuh"
#include "tile.cuh"

namespace fastinst {

constexpr int kSlice = 32;
constexpr int kTileRows = 16, kTileColumns = 32;
constexpr int kLaneValues = kTileRows * kTileColumns / kWarpSize;
static_assert(kSlice == kTileColumns, "a lane owns as many channels of its row as columns");

// How a block is made up. The hot kernels' registers and shared memory have to leave room for
// kBlocks of them on one multiprocessor.
template <typename T, int kWarpCount, int kStageCount = 2, int kBlockCount = 1>
struct AttentionBlock {
  static constexpr int kWarps = kWarpCount, kStages = kStageCount, kBlocks = kBlockCount;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kWarps * kTileRows;
  static constexpr int kStride = kSlice + kRowPadding<T>;  // of a row in shared memory
  static constexpr int kTile = kTileColumns * kStride;
  static constexpr int kScratchStride = kTileColumns + 8;  // 8: no two of a warp's rows in one bank
  static constexpr int kScratch = kTileRows * kScratchStride;  // for each warp, Accumulate<T>
};

// The tokens of one head, `stride` elements apart.
template <typename T>
struct Tokens {
  T* data;
  int stride, count;

  __device__ __forceinline__ T* at(int token) const {
    return data + static_cast<long long>(token) * stride;
  }
};

// [B, heads, tokens, channels] in memory of any strides, but for the channels, which are dense.
template <typename T>
struct Heads {
  T* data;
  long long batch_stride, head_stride;
  int token_stride, tokens;

  __device__ __forceinline__ Tokens<T> of(int batch, int head) const {
    return {data + batch * batch_stride + head * head_stride, token_stride, tokens};
  }
};

struct HeadShape {
  int batch, heads, channels;
};

// Where queries attend: bits [B, queries, ceil(pixels / 32)]. Queries past these, and those that
// are not `guided` [B, queries] because they have no bit, attend everywhere; so do all without
// bits.
struct Attend {
  const unsigned* bits;
  const unsigned char* guided;
  int queries, words;

  __device__ __forceinline__ bool guides(int batch, int query) const {
    return bits != nullptr && query < queries && guided[batch * queries + query];
  }
  // The bits of a query, or null if it attends everywhere.
  __device__ __forceinline__ const unsigned* of(int batch, int query) const {
    if (!guides(batch, query)) return nullptr;
    return bits + (static_cast<long long>(batch) * queries + query) * words;
  }
};

// Four neighbours in a row of scores, or of what is made of them.
template <typename T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Quad {
  T values[4];
};

// Which four columns of a tile the lane's values 4 quad to 4 quad + 3 are.
__device__ __forceinline__ int lane_column(int quad) { return 8 * quad + threadIdx.x % 2 * 4; }
__device__ __forceinline__ int lane_row() { return threadIdx.x % kWarpSize / 2; }

// Whether the lane's value `index` has its bit among those of its row.
__device__ __forceinline__ bool has_bit(unsigned row_bits, int index) {
  return row_bits >> (threadIdx.x % 2 * 4) >> (index / 4 * 8 + index % 4) & 1;
}

// From a tile through the warp's scratch to the lanes. The scratch is free again afterwards.
template <typename Block, typename Tile, typename Real>
__device__ __forceinline__ void take_values(const Tile& tile, Real* scratch,
                                            Real (&values)[kLaneValues]) {
  using Four = Quad<Real>;
  constexpr int kStride = Block::kScratchStride;
  tile.store(scratch, kStride);
  __syncwarp();
#pragma unroll
  for (int quad = 0; quad < kLaneValues / 4; ++quad) {
    const auto* source = scratch + lane_row() * kStride + lane_column(quad);
    const Four four = *reinterpret_cast<const Four*>(source);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[4 * quad + i] = four.values[i];
  }
  __syncwarp();
}

// From the lanes to a matrix of T in the scratch, its rows Block::kStride apart, for a product.
template <typename T, typename Block>
__device__ __forceinline__ const T* put_values(const Accumulate<T> (&values)[kLaneValues],
                                               Accumulate<T>* scratch) {
  constexpr int kStride = Block::kStride;
  T* matrix = reinterpret_cast<T*>(scratch);
#pragma unroll
  for (int quad = 0; quad < kLaneValues / 4; ++quad) {
    Quad<T> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.values[i] = narrow<T>(values[4 * quad + i]);
    *reinterpret_cast<Quad<T>*>(matrix + lane_row() * kStride + lane_column(quad)) = four;
  }
  __syncwarp();
  return matrix;
}

// The lane's channels of [channel, channel + kSlice) to its token, of so many channels.
template <typename T, typename Real>
__device__ __forceinline__ void store_channels(T* token, int channel, int channels,
                                               const Real (&values)[kLaneValues]) {
#pragma unroll
  for (int quad = 0; quad < kLaneValues / 4; ++quad) {
    Quad<T> four;
#pragma unroll
    for (int i = 0; i < 4; ++i) four.values[i] = narrow<T>(values[4 * quad + i]);
    const int first = channel + lane_column(quad);
    if (first < channels) *reinterpret_cast<Quad<T>*>(token + first) = four;
  }
}

// Channels [channel, channel + kSlice) of kCount tokens to shared memory: `token_of(row)` is the
// token of a row, or negative for a row of zeros. There after __pipeline_wait_prior and a barrier.
template <typename Block, int kCount, typename T, typename TokenOf>
__device__ __forceinline__ void stage_tokens(T* target, const Tokens<const T>& tokens, int channel,
                                             int channels, TokenOf token_of) {
  constexpr int kVector = Packed<T>::kSize, kVectors = kSlice / kVector;
  for (int index = threadIdx.x; index < kCount * kVectors; index += Block::kThreads) {
    // index -> (row, vector)
    const int row = index / kVectors, offset = index % kVectors * kVector;
    const int token = token_of(row);
    T* to = target + row * Block::kStride + offset;
    if (token >= 0 && channel + offset < channels) {
      __pipeline_memcpy_async(to, tokens.at(token) + channel + offset, sizeof(Packed<T>));
    } else {
      *reinterpret_cast<int4*>(to) = int4{0, 0, 0, 0};
    }
  }
}

// One word of Attend::of(...), or without bits `otherwise`; there as what stage_tokens brings.
__device__ __forceinline__ void stage_bits(unsigned* target, const unsigned* bits, int word,
                                           unsigned otherwise) {
  if (bits != nullptr) {
    __pipeline_memcpy_async(target, bits + word, sizeof(unsigned));
  } else {
    *target = otherwise;
  }
}

// Which token each of the block's rows is, or -1: first the guided queries, then those that attend
// everywhere. Together these keep few warps from skipping tiles, scattered they would keep all.
template <int kRows>
__device__ __forceinline__ void order_rows(int (&order)[kRows], int first, int count,
                                           const Attend& attend, int batch) {
  constexpr int kRounds = ceil_div(kRows, kWarpSize);
  if (threadIdx.x < kWarpSize) {
    unsigned guided[kRounds];
    int open_slot = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int row = round * kWarpSize + threadIdx.x;
      const bool is_guided =
          row < kRows && first + row < count && attend.guides(batch, first + row);
      guided[round] = __ballot_sync(kFullWarp, is_guided);
      open_slot += __popc(guided[round]);
    }
    const unsigned lanes_before = (1u << threadIdx.x) - 1;
    int guided_slot = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int row = round * kWarpSize + threadIdx.x;
      const int slot = guided[round] >> threadIdx.x & 1
                           ? guided_slot + __popc(guided[round] & lanes_before)
                           : open_slot + __popc(~guided[round] & lanes_before);
      if (slot < kRows) order[slot] = first + row < count ? first + row : -1;
      guided_slot += __popc(guided[round]);
      open_slot += kWarpSize - __popc(guided[round]);
    }
  }
  __syncthreads();
}

__device__ __forceinline__ float power_of_two(float exponent) { return exp2f(exponent); }
__device__ __forceinline__ double power_of_two(double exponent) { return exp2(exponent); }

#ifndef __CUDACC_RTC__
// How many columns each of the blocks' chunks gets, so that about two blocks for each
// multiprocessor share the work: without chunks there would be `blocks`.
inline int columns_of_chunk(long long blocks, int columns, int multiprocessors) {
  const int tiles = ceil_div(columns, kTileColumns);
  const long long wanted = blocks < 1 ? 1 : 2LL * multiprocessors / blocks;
  const int chunks = static_cast<int>(wanted < 1 ? 1 : wanted > tiles ? tiles : wanted);
  return ceil_div(tiles, chunks) * kTileColumns;
}
#endif

}  // namespace fastinst
