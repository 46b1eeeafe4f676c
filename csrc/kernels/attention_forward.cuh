// softmax(query key^T / sqrt(channels)) value, for few queries that attend to many pixels under a
// mask, and for many pixels that attend to few queries.
//
// A block (attention.cuh) holds the rows of a head against one chunk of its keys: few queries would
// leave most of the chip idle otherwise. With one chunk it writes the output; with more, each
// leaves its unnormalised sums, their weights' sum and reference, and merge_chunks_kernel adds them
// up in a fixed order. A warp whose 16 rows have no bit among the 32 columns of a tile skips it.
#pragma once

#include "launch.cuh"
#include "online_softmax.cuh"

namespace fastinst {

template <typename T>
struct AttentionParams {
  HeadShape shape;
  Heads<const T> query, key, value;  // without value.data, only the statistics are left
  Heads<T> output;
  Attend attend;
  Accumulate<T> scale;  // log2(e) / sqrt(channels)
  int chunk_columns;    // a multiple of kTileColumns
  // Null if there is one chunk and an output:
  Accumulate<T>* partial_sums;        // [chunks, B, heads, queries, channels]
  Accumulate<T>* partial_statistics;  // [chunks, B, heads, queries, 2]: reference, sum of weights

  __host__ __device__ int chunks() const { return ceil_div(key.tokens, chunk_columns); }
};

// Seven warps take the model's 108 queries at once. Wider types: what 64 KB (sm_75) have room for.
template <typename T>
using ForwardBlock = AttentionBlock<T, sizeof(T) == 2 ? 7 : sizeof(T) == 4 ? 4 : 2,
                                    sizeof(T) == 2 ? 4 : 2, sizeof(T) == 2 ? 2 : 1>;

template <typename T>
__global__ void __launch_bounds__(ForwardBlock<T>::kThreads, ForwardBlock<T>::kBlocks)
    attention_kernel(AttentionParams<T> params) {
  using Real = Accumulate<T>;
  using Block = ForwardBlock<T>;
  constexpr int kStages = Block::kStages;
  const HeadShape& shape = params.shape;
  const int row_blocks = ceil_div(params.query.tokens, Block::kRows);
  const int slices = ceil_div(shape.channels, kSlice);

  // blockIdx.x -> (batch, head, slice of the value, chunk, block of rows)
  int index = blockIdx.x;
  const int first_row = index % row_blocks * Block::kRows;
  index /= row_blocks;
  const int chunk = index % params.chunks();
  index /= params.chunks();
  const bool has_value = params.value.data != nullptr;
  const int slice = has_value ? index % slices : 0;
  if (has_value) index /= slices;
  const int head = index % shape.heads, batch = index / shape.heads;
  const int warp = threadIdx.x / kWarpSize;

  T* rows = shared_memory<T>();  // [kRows, kStride]
  // [kStages][key, value][kTileColumns, kStride]
  T* columns = rows + Block::kRows * Block::kStride;
  Real* scratch = reinterpret_cast<Real*>(columns + 2 * kStages * Block::kTile) +
                  warp * Block::kScratch;
  __shared__ int order[Block::kRows];
  __shared__ unsigned bits[kStages][Block::kRows];

  const Tokens<const T> queries = params.query.of(batch, head);
  const Tokens<const T> keys = params.key.of(batch, head);
  const Tokens<const T> values = has_value ? params.value.of(batch, head) : Tokens<const T>{};
  order_rows(order, first_row, queries.count, params.attend, batch);
  const int thread_query = threadIdx.x < Block::kRows ? order[threadIdx.x] : -1;
  const unsigned* thread_bits =
      thread_query < 0 ? nullptr : params.attend.of(batch, thread_query);

  const int begin = chunk * params.chunk_columns;
  const int end = min(begin + params.chunk_columns, keys.count);
  const int tiles = ceil_div(end - begin, kTileColumns);
  // The slices take turns, the block's own as the last.
  const auto stage = [&](int tile, int turn) {
    if (tile < tiles) {
      const int turned = slice + 1 + turn;
      const int channel = (turned < slices ? turned : turned - slices) * kSlice;
      const int first = begin + tile * kTileColumns;
      const auto token_of = [&](int row) { return first + row < end ? first + row : -1; };
      T* key = columns + tile % kStages * 2 * Block::kTile;
      stage_tokens<Block, kTileColumns>(key, keys, channel, shape.channels, token_of);
      if (turn == slices - 1 && has_value) {
        stage_tokens<Block, kTileColumns>(key + Block::kTile, values, channel, shape.channels,
                                          token_of);
      }
      if (tile == 0 || slices > 1) {
        stage_tokens<Block, Block::kRows>(rows, queries, channel, shape.channels,
                                          [&](int row) { return order[row]; });
      }
      if (threadIdx.x < Block::kRows) {
        stage_bits(&bits[tile % kStages][threadIdx.x], thread_bits, first / kTileColumns,
                   thread_query < 0 ? 0 : ~0u);
      }
    }
    __pipeline_commit();
  };
  const bool runs_ahead = slices == 1;
  for (int tile = 0; tile < (runs_ahead ? kStages - 1 : 1); ++tile) stage(tile, 0);

  const int row = warp * kTileRows + lane_row();
  OnlineSoftmax<T, Block> softmax(scratch);
  for (int tile = 0; tile < tiles; ++tile) {
    const T* key = columns + tile % kStages * 2 * Block::kTile;
    const int left = end - begin - tile * kTileColumns;
    unsigned row_bits = left < kTileColumns ? (1u << left) - 1 : ~0u;
    WarpTile<T, kTileRows, kTileColumns> scores;
    scores.clear();
    for (int turn = 0; turn < slices; ++turn) {
      if (!runs_ahead && tile + turn > 0) {
        __syncthreads();
        stage(tile, turn);
      }
      __pipeline_wait_prior(runs_ahead ? kStages - 2 : 0);
      __syncthreads();
      if (runs_ahead) stage(tile + kStages - 1, 0);
      row_bits &= bits[tile % kStages][row];
      if (!__any_sync(kFullWarp, row_bits != 0)) continue;
      scores.template multiply_add<kSlice, Order::kRowMajor, Order::kColumnMajor>(
          rows + warp * kTileRows * Block::kStride, Block::kStride, key, Block::kStride);
    }
    if (!__any_sync(kFullWarp, row_bits != 0)) continue;
    softmax.add(scores, row_bits, params.scale, has_value ? key + Block::kTile : nullptr);
  }

  Real sums[kLaneValues];
  const Real sum = softmax.finish(sums);
  const int query = order[row];
  if (query < 0) return;
  if (params.partial_statistics == nullptr) {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sums[i] /= sum;
    const Tokens<T> output = params.output.of(batch, head);
    store_channels(output.at(query), slice * kSlice, shape.channels, sums);
    return;
  }
  const size_t partial =
      ((static_cast<size_t>(chunk) * shape.batch + batch) * shape.heads + head) * queries.count +
      query;
  if (slice == 0 && threadIdx.x % 2 == 0) {
    params.partial_statistics[2 * partial] = softmax.reference();
    params.partial_statistics[2 * partial + 1] = sum;
  }
  if (has_value) {
    store_channels(params.partial_sums + partial * shape.channels, slice * kSlice, shape.channels,
                   sums);
  }
}

constexpr int kMergeWarps = 8;

// output = sum of the chunks' sums / sum of their weights, under one reference. A warp owns a slice
// of a row: its lanes first a chunk each, for the factors, and then a channel each.
template <typename T>
__global__ void __launch_bounds__(kMergeWarps * kWarpSize)
    merge_chunks_kernel(AttentionParams<T> params) {
  using Real = Accumulate<T>;
  const HeadShape& shape = params.shape;
  const int slices = ceil_div(shape.channels, kSlice);
  const int rows = shape.batch * shape.heads * params.query.tokens;
  const int lane = threadIdx.x % kWarpSize;
  // index -> (batch, head, query; slice)
  const int index = blockIdx.x * kMergeWarps + threadIdx.x / kWarpSize;
  const int row = index / slices, channel = index % slices * kSlice + lane;
  if (row >= rows) return;
  const int query = row % params.query.tokens;
  const int head = row / params.query.tokens % shape.heads;
  const int batch = row / params.query.tokens / shape.heads;

  const Real* statistics = params.partial_statistics + 2 * row;
  const size_t chunk_stride = rows;
  Real reference = -infinity<Real>();
  for (int chunk = lane; chunk < params.chunks(); chunk += kWarpSize) {
    reference = max(reference, statistics[2 * chunk * chunk_stride]);
  }
  reference = warp_reduce(reference, Maximum());
  Real sum = 0, weight_sum = 0;
  for (int first = 0; first < params.chunks(); first += kWarpSize) {
    const int left = min(kWarpSize, params.chunks() - first);
    Real factor = 0;
    if (lane < left) {
      const Real* own = statistics + 2 * (first + lane) * chunk_stride;
      factor = power_of_two(params.scale * (own[0] - reference));
      weight_sum += factor * own[1];
    }
#pragma unroll 4
    for (int i = 0; i < left; ++i) {
      const Real chunk_factor = __shfl_sync(kFullWarp, factor, i);
      const size_t partial = (first + i) * chunk_stride + row;
      if (channel < shape.channels) {
        sum += chunk_factor * params.partial_sums[partial * shape.channels + channel];
      }
    }
  }
  weight_sum = warp_reduce(weight_sum, Sum());
  if (channel < shape.channels) {
    params.output.of(batch, head).at(query)[channel] = narrow<T>(sum / weight_sum);
  }
}

#ifndef __CUDACC_RTC__
template <typename T>
int attention_chunk_columns(const HeadShape& shape, int queries, int keys, int multiprocessors) {
  const long long blocks = static_cast<long long>(shape.batch) * shape.heads *
                           ceil_div(shape.channels, kSlice) *
                           ceil_div(queries, ForwardBlock<T>::kRows);
  return columns_of_chunk(blocks, keys, multiprocessors);
}

template <typename T>
void launch_attention(const AttentionParams<T>& params, cudaStream_t stream) {
  using Block = ForwardBlock<T>;
  const HeadShape& shape = params.shape;
  const int slices = ceil_div(shape.channels, kSlice), heads = shape.batch * shape.heads;
  const unsigned blocks = heads * (params.value.data ? slices : 1) * params.chunks() *
                          ceil_div(params.query.tokens, Block::kRows);
  constexpr size_t kStagedRows = Block::kRows + 2 * Block::kStages * kTileColumns;
  constexpr size_t kShared = kStagedRows * Block::kStride * sizeof(T) +
                             Block::kWarps * Block::kScratch * sizeof(Accumulate<T>);
  launch(attention_kernel<T>, blocks, Block::kThreads, kShared, stream, params);
  if (params.partial_sums == nullptr) return;
  const unsigned merge_blocks = ceil_div(heads * params.query.tokens * slices, kMergeWarps);
  launch(merge_chunks_kernel<T>, merge_blocks, kMergeWarps * kWarpSize, 0, stream, params);
}
#endif

}  // namespace fastinst
