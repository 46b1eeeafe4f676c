// The gradients of attention_forward.cuh, from the weights computed anew:
//
//     weights = 2^(scale (scores - reference)) / sum    grad_value = weights^T grad
//     grad_weights = grad value^T                       delta = sum of grad * output over channels
//     grad_scores = weights * (grad_weights - delta)
//     grad_query = grad_scores key / sqrt(channels)
//     grad_key = grad_scores^T query / sqrt(channels)
//
// First the forward kernel runs over queries and keys alone, and query_statistics_kernel merges
// what it leaves and adds delta. Then one kernel serves both sides, for it is the same seen from
// either: rows (queries with grad; keys with value) meet columns (keys with value; queries with
// grad), scores and grad_weights are two products, and the rows' gradients are sums over columns.
// No two blocks add to the same gradient, unless the columns are divided into chunks to fill the
// chip; then sum_chunks_kernel adds their parts. Nothing depends on the order in which threads run.
#pragma once

#include "query_statistics.cuh"
#include "sum_chunks.cuh"

namespace fastinst {

// The rows' gradients; `second` only where the rows are keys.
template <typename T>
struct RowGradients {
  Heads<T> first, second;
  int chunk_columns;
  // Null if there is one chunk, else [chunks, B, heads, rows, channels].
  Accumulate<T>*partial_first, *partial_second;
};

// As many registers as two gradients take leave room for eight warps.
template <typename T>
using GradientBlock = AttentionBlock<T, sizeof(T) == 8 ? 2 : 4, 2, sizeof(T) == 2 ? 2 : 1>;

// The power of two that brings a number of these bits to 2^kGradBits; 1 for 0, infinity and NaN.
__device__ __forceinline__ float grad_factor(int bits) {
  const int exponent = bits >> 23;
  return exponent == 0 || exponent == 255 ? 1 : exp2f(kGradBits - (exponent - 127));
}

// target += values columns. A 16-bit type takes what rounding has left in a second product: the
// values may cancel in the sums, where their rounding errors do not. Spoils the values.
template <typename T, typename Block>
__device__ __forceinline__ void add_product(Accumulate<T> (&values)[kLaneValues], const T* columns,
                                            Accumulate<T>* scratch,
                                            WarpTile<T, kTileRows, kSlice>& target) {
#pragma unroll
  for (int part = 0; part < (sizeof(T) == 2 ? 2 : 1); ++part) {
    const T* matrix = put_values<T, Block>(values, scratch);
    target.template multiply_add<kTileColumns, Order::kRowMajor, Order::kRowMajor>(
        matrix, Block::kStride, columns, Block::kStride);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) values[i] -= widen(narrow<T>(values[i]));
  }
}

template <typename T, bool kRowsAreQueries>
__global__ void __launch_bounds__(GradientBlock<T>::kThreads, GradientBlock<T>::kBlocks)
    attention_gradient_kernel(AttentionGradientParams<T> params, RowGradients<T> gradients) {
  using Real = Accumulate<T>;
  using Block = GradientBlock<T>;
  constexpr int kStages = Block::kStages;
  const HeadShape& shape = params.shape;
  const int row_count = kRowsAreQueries ? params.query.tokens : params.key.tokens;
  const int column_count = kRowsAreQueries ? params.key.tokens : params.query.tokens;
  const int row_blocks = ceil_div(row_count, Block::kRows);
  const int chunks = ceil_div(column_count, gradients.chunk_columns);
  const int slices = ceil_div(shape.channels, kSlice);

  // blockIdx.x -> (batch, head, slice of the gradients, chunk, block of rows)
  int index = blockIdx.x;
  const int first_row = index % row_blocks * Block::kRows;
  index /= row_blocks;
  const int chunk = index % chunks;
  index /= chunks;
  const int slice = index % slices;
  index /= slices;
  const int head = index % shape.heads, batch = index / shape.heads;
  const int warp = threadIdx.x / kWarpSize;

  T* rows = shared_memory<T>();                           // [2 tensors][kRows, kStride]
  T* columns = rows + 2 * Block::kRows * Block::kStride;  // [kStages][2][kTileColumns, kStride]
  Real* scratch = reinterpret_cast<Real*>(columns + 2 * kStages * Block::kTile) +
                  warp * Block::kScratch;
  __shared__ int order[Block::kRows];
  // Of the queries in the columns of a tile: reference, 1 / sum, delta.
  alignas(16) __shared__ Real column_statistics[kStages][3][kTileColumns];

  const auto tokens = [&](const Heads<const T>& heads) { return heads.of(batch, head); };
  const Tokens<const T> row_first = tokens(kRowsAreQueries ? params.query : params.key);
  const Tokens<const T> row_second = tokens(kRowsAreQueries ? params.grad : params.value);
  const Tokens<const T> column_first = tokens(kRowsAreQueries ? params.key : params.query);
  const Tokens<const T> column_second = tokens(kRowsAreQueries ? params.value : params.grad);
  const int all_queries = shape.batch * shape.heads * params.query.tokens;
  const Real* statistics =
      params.query_statistics + (batch * shape.heads + head) * params.query.tokens;
  order_rows(order, first_row, row_count, kRowsAreQueries ? params.attend : Attend{}, batch);

  const int begin = chunk * gradients.chunk_columns;
  const int end = min(begin + gradients.chunk_columns, column_count);
  const int tiles = ceil_div(end - begin, kTileColumns);
  // The slices take turns, the block's own as the last.
  const auto stage = [&](int tile, int turn) {
    if (tile >= tiles) return;
    const int turned = slice + 1 + turn;
    const int channel = (turned < slices ? turned : turned - slices) * kSlice;
    const int first = begin + tile * kTileColumns;
    const auto token_of = [&](int row) { return first + row < end ? first + row : -1; };
    T* column = columns + tile % kStages * 2 * Block::kTile;
    stage_tokens<Block, kTileColumns>(column, column_first, channel, shape.channels, token_of);
    stage_tokens<Block, kTileColumns>(column + Block::kTile, column_second, channel,
                                      shape.channels, token_of);
    if (tile == 0 || slices > 1) {
      const auto row_token = [&](int row) { return order[row]; };
      stage_tokens<Block, Block::kRows>(rows, row_first, channel, shape.channels, row_token);
      stage_tokens<Block, Block::kRows>(rows + Block::kRows * Block::kStride, row_second, channel,
                                        shape.channels, row_token);
    }
    if (!kRowsAreQueries && threadIdx.x < kTileColumns) {
      const int query = token_of(threadIdx.x);
      for (int i = 0; i < 3; ++i) {
        Real* target = &column_statistics[tile % kStages][i][threadIdx.x];
        if (query < 0) {
          *target = 0;
        } else {
          __pipeline_memcpy_async(target, statistics + i * all_queries + query, sizeof(Real));
        }
      }
    }
    __pipeline_commit();
  };

  const int row = order[warp * kTileRows + lane_row()];
  const int warp_pixel = first_row + warp * kTileRows;
  const unsigned* row_attends =
      kRowsAreQueries && row >= 0 ? params.attend.of(batch, row) : nullptr;
  // A word of the lane's row; or 16 bits, the warp's rows, of the query in the lane's column.
  const auto load_bits = [&](int tile) {
    const int first = begin + tile * kTileColumns;
    if (kRowsAreQueries) {
      return row_attends == nullptr || first >= end ? ~0u : row_attends[first / kTileColumns];
    }
    const int query = first + threadIdx.x % kWarpSize;
    if (query >= end || warp_pixel >= row_count) return 0u;
    const unsigned* attends = params.attend.of(batch, query);
    return attends == nullptr ? ~0u
                              : attends[warp_pixel / kTileColumns] >> warp_pixel % kTileColumns;
  };
  // The columns of the tile that belong to the lane's row.
  const auto row_bits_of = [&](unsigned loaded, int tile) {
    unsigned row_bits = loaded;
    if (!kRowsAreQueries) {
#pragma unroll
      for (int i = 0; i < kTileRows; ++i) {
        const unsigned ballot = __ballot_sync(kFullWarp, loaded >> i & 1);
        if (i == lane_row()) row_bits = ballot;
      }
    }
    const int left = end - begin - tile * kTileColumns;
    if (left < kTileColumns) row_bits &= (1u << left) - 1;
    return row < 0 ? 0u : row_bits;
  };

  Real row_statistics[3] = {};
  if (kRowsAreQueries && row >= 0) {
    for (int i = 0; i < 3; ++i) row_statistics[i] = statistics[i * all_queries + row];
  }
  // One of a query's statistics, for four columns.
  const auto statistics_of = [&](int which, int tile, int quad) {
    if (!kRowsAreQueries) {
      const Real* columns = column_statistics[tile % kStages][which];
      return *reinterpret_cast<const Quad<Real>*>(columns + lane_column(quad));
    }
    const Real of_row = row_statistics[which];
    return Quad<Real>{{of_row, of_row, of_row, of_row}};
  };
  const Real factor = kWeightBits<T> > 0 ? grad_factor(*params.largest_grad) : 1;
  WarpTile<T, kTileRows, kSlice> first_gradient, second_gradient;
  first_gradient.clear();
  second_gradient.clear();
  const bool runs_ahead = slices == 1;
  stage(0, 0);
  unsigned next_bits = load_bits(0);
  for (int tile = 0; tile < tiles; ++tile) {
    const unsigned row_bits = row_bits_of(next_bits, tile);
    next_bits = load_bits(tile + 1);
    const bool is_attended = __any_sync(kFullWarp, row_bits != 0);
    const T* first = columns + tile % kStages * 2 * Block::kTile;
    const T* second = first + Block::kTile;
    WarpTile<T, kTileRows, kTileColumns> scores, grad_weights;
    scores.clear();
    grad_weights.clear();
    for (int turn = 0; turn < slices; ++turn) {
      if (!runs_ahead && tile + turn > 0) {
        __syncthreads();
        stage(tile, turn);
      }
      __pipeline_wait_prior(0);
      __syncthreads();
      if (runs_ahead) stage(tile + 1, 0);
      if (!is_attended) continue;
      const T* own = rows + warp * kTileRows * Block::kStride;
      scores.template multiply_add<kSlice, Order::kRowMajor, Order::kColumnMajor>(
          own, Block::kStride, first, Block::kStride);
      grad_weights.template multiply_add<kSlice, Order::kRowMajor, Order::kColumnMajor>(
          own + Block::kRows * Block::kStride, Block::kStride, second, Block::kStride);
    }
    if (!is_attended) continue;

    Real weights[kLaneValues], grad_scores[kLaneValues];
    take_values<Block>(scores, scratch, weights);
    take_values<Block>(grad_weights, scratch, grad_scores);
#pragma unroll
    for (int quad = 0; quad < kLaneValues / 4; ++quad) {
      const Quad<Real> reference = statistics_of(0, tile, quad);
      const Quad<Real> inverse_sum = statistics_of(1, tile, quad);
      const Quad<Real> delta = statistics_of(2, tile, quad);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 4 * quad + j;
        const Real exponent = fma(weights[i] - reference.values[j], params.score_scale,
                                  static_cast<Real>(kWeightBits<T>));
        weights[i] = has_bit(row_bits, i) ? power_of_two(exponent) * inverse_sum.values[j] : 0;
        grad_scores[i] = weights[i] * (grad_scores[i] - delta.values[j]) * factor;
      }
    }
    if (!kRowsAreQueries) add_product<T, Block>(weights, second, scratch, second_gradient);
    add_product<T, Block>(grad_scores, first, scratch, first_gradient);
  }

  const Real unit = power_of_two(static_cast<Real>(-kWeightBits<T>));
  const size_t partial_row =
      ((static_cast<size_t>(chunk) * shape.batch + batch) * shape.heads + head) * row_count + row;
  const auto finish = [&](const WarpTile<T, kTileRows, kSlice>& tile, Real scale,
                          const Heads<T>& target, Real* partial) {
    Real values[kLaneValues];
    take_values<Block>(tile, scratch, values);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) values[i] *= scale;
    if (row < 0) return;
    if (partial == nullptr) {
      store_channels(target.of(batch, head).at(row), slice * kSlice, shape.channels, values);
    } else {
      store_channels(partial + partial_row * shape.channels, slice * kSlice, shape.channels,
                     values);
    }
  };
  finish(first_gradient, params.scale * unit / factor, gradients.first, gradients.partial_first);
  if (!kRowsAreQueries) {
    finish(second_gradient, unit, gradients.second, gradients.partial_second);
  }
}

#ifndef __CUDACC_RTC__
template <typename T, bool kRowsAreQueries>
void launch_row_gradients(const AttentionGradientParams<T>& params,
                          const RowGradients<T>& gradients, cudaStream_t stream) {
  using Block = GradientBlock<T>;
  const HeadShape& shape = params.shape;
  const int rows = kRowsAreQueries ? params.query.tokens : params.key.tokens;
  const int columns = kRowsAreQueries ? params.key.tokens : params.query.tokens;
  const int chunks = ceil_div(columns, gradients.chunk_columns);
  const unsigned blocks = shape.batch * shape.heads * ceil_div(shape.channels, kSlice) * chunks *
                          ceil_div(rows, Block::kRows);
  constexpr size_t kStagedRows = 2 * Block::kRows + 4 * kTileColumns;
  constexpr size_t kShared = kStagedRows * Block::kStride * sizeof(T) +
                             Block::kWarps * Block::kScratch * sizeof(Accumulate<T>);
  launch(attention_gradient_kernel<T, kRowsAreQueries>, blocks, Block::kThreads, kShared, stream,
         params, gradients);
  launch_sum_chunks(shape, gradients.first, gradients.partial_first, chunks, stream);
  launch_sum_chunks(shape, gradients.second, gradients.partial_second, chunks, stream);
}

// After launch_attention without a value, which leaves params.partial_statistics.
template <typename T>
void launch_attention_gradient(const AttentionGradientParams<T>& params,
                               const RowGradients<T>& of_queries, const RowGradients<T>& of_keys,
                               cudaStream_t stream) {
  launch_query_statistics(params, stream);
  launch_row_gradients<T, true>(params, of_queries, stream);
  launch_row_gradients<T, false>(params, of_keys, stream);
}
#endif

}  // namespace fastinst
