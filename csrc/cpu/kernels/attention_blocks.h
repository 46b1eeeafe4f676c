// Blocks of attention: what the forward and the backward loops share.
//
// Everything is held as panels of 32 columns: a row of scores or weights is a block of 32 keys, and
// a query, key or value is cut into slices of 32 numbers.

#pragma once

#include "attention.h"
#include "buffer.h"
#include "panels.h"

namespace fastinst {
namespace FASTINST_ISA {

// Queries whose scores are in cache at a time.
constexpr int64_t kGroup = 4 * kTileRows;
constexpr double kLog2E = 1.4426950408889634;

// A task's place: a head of an image, a chunk of its queries and one of its keys.
struct Chunk {
  int64_t batch, head, plane;  // plane = batch * H + head
  int64_t query_chunk, first_query, queries;
  int64_t key_chunk, first_key, last_key;  // last_key is not part of it
};

inline Chunk chunk_of(const AttentionParams& p, int64_t task) {
  Chunk c;
  // task = (batch, head, query chunk, key chunk)
  c.key_chunk = task % p.key_chunks();
  const int64_t rest = task / p.key_chunks();
  c.query_chunk = rest % p.query_chunks();
  c.plane = rest / p.query_chunks();
  c.batch = c.plane / p.heads;
  c.head = c.plane % p.heads;
  c.first_query = c.query_chunk * kQueryChunk;
  c.queries = min(kQueryChunk, p.num_queries - c.first_query);
  c.first_key = c.key_chunk * kKeyChunk;
  c.last_key = min(c.first_key + kKeyChunk, p.num_keys);
  return c;
}

// Where a token's numbers begin.
template <typename T>
inline T* token_data(const Heads& heads, int64_t batch, int64_t head, int64_t token) {
  return (T*)heads.data + batch * heads.batch_stride + head * heads.head_stride +
         token * heads.token_stride;
}
template <typename T>
inline T* token_data(const Heads& heads, const Chunk& c, int64_t token) {
  return token_data<T>(heads, c.batch, c.head, token);
}

// The number of a query of the chunk in [B, H, key chunks, num_queries].
inline int64_t partial_row(const AttentionParams& p, const Chunk& c, int64_t row) {
  return (c.plane * p.key_chunks() + c.key_chunk) * p.num_queries + c.first_query + row;
}

// The queries of a chunk, scaled so that their products with keys are scores in units of log 2.
template <typename T>
inline void pack_queries(const AttentionParams& p, const Chunk& c, Accumulate<T>* to) {
  const Accumulate<T> scale = Accumulate<T>(kLog2E / __builtin_sqrt(double(p.dim)));
  pack_rows<T>(token_data<T>(p.query, c, c.first_query), p.query.token_stride, c.queries, p.dim,
               scale, {to, c.queries});
}

inline int64_t keys_in_block(const Chunk& c, int64_t first) {
  return min(kBlock, c.last_key - first);
}

template <typename T>
inline void pack_tokens(const AttentionParams& p, const Heads& heads, const Chunk& c,
                        int64_t first, Accumulate<T>* to) {
  pack_block<T>(token_data<T>(heads, c, first), heads.token_stride, keys_in_block(c, first), p.dim,
                to);
}

// The queries of a chunk that attend to a block of keys, and to which of them.
struct Active {
  int32_t rows[kQueryChunk];  // ascending
  uint32_t bits[kQueryChunk];
  int64_t count;
};

inline void find_active(const AttentionParams& p, const Chunk& c, int64_t first, Active& active) {
  const uint32_t all = 0xffffffffu >> (kBlock - keys_in_block(c, first));
  const uint32_t* words = nullptr;
  if (p.bits != nullptr) {
    const int64_t row = c.batch * ceil_div(p.num_keys, kBlock) + first / kBlock;
    words = p.bits + row * p.num_queries + c.first_query;
  }
  int64_t count = 0;
  for (int64_t row = 0; row < c.queries; ++row) {
    const uint32_t bits = words != nullptr ? words[row] : all;
    active.rows[count] = int32_t(row);
    active.bits[count] = bits;
    count += bits != 0;
  }
  active.count = count;
}

// Whether ascending rows lie side by side, so that they can be used where they are.
inline bool side_by_side(const int32_t* rows, int64_t count) {
  return rows[count - 1] - rows[0] == count - 1;
}

// Rows by number side by side: themselves if they are, or else copies in [slices][kGroup][32].
template <typename A>
inline Panels<A> gather_rows(const Panels<A>& from, int64_t slices, const int32_t* rows,
                             int64_t count, A* copies) {
  if (side_by_side(rows, count)) return {from.data + rows[0] * kBlock, from.panel_rows};
  const Panels<A> to{copies, kGroup};
  for (int64_t slice = 0; slice < slices; ++slice) {
    for (int64_t i = 0; i < count; ++i) {
      const A* row = from.slice(slice) + rows[i] * kBlock;
      A* copy = to.slice(slice) + i * kBlock;
      for (int64_t j = 0; j < kBlock; j += kLanes<A>) store(copy + j, load(row + j));
    }
  }
  return to;
}

// panel [rows by number][32] += a [count][depth] b [depth][32]; `product` is memory for it.
template <typename A>
inline void multiply_to_rows(const A* a, const A* b, const int32_t* rows, int64_t count,
                             int64_t depth, A* panel, A* product) {
  if (side_by_side(rows, count)) {
    return multiply_panel<A, kBlock, 1>(a, b, count, depth, panel + rows[0] * kBlock, true);
  }
  multiply_panel<A, kBlock, 1>(a, b, count, depth, product, false);
  for (int64_t i = 0; i < count; ++i) {
    A* row = panel + rows[i] * kBlock;
    for (int64_t j = 0; j < kBlock; j += kLanes<A>) {
      store(row + j, load(row + j) + load(product + i * kBlock + j));
    }
  }
}

template <typename A>
inline A exp2_of(A x) {
  return exp2(broadcast(x))[0];
}

// A query's maximum and sum of 2^(score - maximum) over all chunks of keys.
template <typename A>
struct Statistics {
  A maximum, sum;
};

template <typename A>
inline Statistics<A> combined_statistics(const AttentionParams& p, int64_t plane, int64_t query) {
  const int64_t first = plane * p.key_chunks() * p.num_queries + query;
  const A* maxima = (const A*)p.maxima + first;
  const A* sums = (const A*)p.sums + first;
  Statistics<A> all{maxima[0], 0};
  for (int64_t chunk = 1; chunk < p.key_chunks(); ++chunk) {
    const A maximum = maxima[chunk * p.num_queries];
    if (maximum > all.maximum) all.maximum = maximum;
  }
  for (int64_t chunk = 0; chunk < p.key_chunks(); ++chunk) {
    const int64_t place = chunk * p.num_queries;
    all.sum += sums[place] * exp2_of(maxima[place] - all.maximum);
  }
  return all;
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
