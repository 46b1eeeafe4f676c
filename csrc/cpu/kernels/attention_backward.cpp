// The gradients of attention: with P = softmax(query key^T / sqrt(D)) and output = P value,
//
//   grad_value = P^T grad            dS = P * (grad value^T - delta), delta = sum(grad * output)
//   grad_key   = dS^T query / sqrt(D)        grad_query = dS key / sqrt(D)
//
// P is computed anew, block by block as in the forward loops, from the maxima and sums that
// attention_statistics left. A task goes through its chunk of keys in blocks of 32: there the
// gradients of a block's keys and values are summed over the groups of queries, while those of the
// task's queries are summed over the blocks. Everything between is a group by 32 keys, in cache.

#include "attention_blocks.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

// A task's queries.
template <typename A>
struct Rows {
  Buffer<A> query_memory, grad_memory, grad_query_memory;
  Panels<A> queries, grads, grad_queries;  // [slices][queries][32]
  Buffer<A> maxima, factors, deltas;       // P = 2^(score - maximum) * factor

  Rows(int64_t count, int64_t slices)
      : query_memory(slices * count * kBlock),
        grad_memory(slices * count * kBlock),
        grad_query_memory(slices * count * kBlock),
        queries{query_memory, count},
        grads{grad_memory, count},
        grad_queries{grad_query_memory, count},
        maxima(count),
        factors(count),
        deltas(count) {
    fill_zero<A>(grad_query_memory, slices * count * kBlock);
  }
};

template <typename T>
void prepare_rows(const AttentionParams& p, const Chunk& c, Rows<Accumulate<T>>& rows) {
  using A = Accumulate<T>;
  pack_queries<T>(p, c, rows.queries.data);
  pack_rows<T>(token_data<T>(p.grad, c, c.first_query), p.grad.token_stride, c.queries, p.dim,
               A(1), rows.grads);
  for (int64_t row = 0; row < c.queries; ++row) {
    const int64_t query = c.first_query + row;
    const Statistics<A> all = combined_statistics<A>(p, c.plane, query);
    rows.maxima[row] = all.maximum;
    rows.factors[row] = 1 / all.sum;
    const T* output = token_data<T>(p.output, c, query);
    Vec<A> delta{};
    for (int64_t column = 0; column < p.dim; column += kLanes<A>) {
      __builtin_prefetch(output + kBlock * p.output.token_stride + column);
      const A* grad = rows.grads.slice(column / kBlock) + row * kBlock + column % kBlock;
      delta += load(grad) * load_part(output, column, p.dim);
    }
    rows.deltas[row] = sum_of_lanes<A>(delta);
  }
}

// A block of keys, and memory for the groups of queries that pass it.
template <typename A>
struct Block {
  int64_t count;                                               // of keys, at most 32
  Buffer<A> keys, transposed_keys, values, transposed_values;  // [slices][32][32]
  Buffer<A> grad_keys, grad_values;                            // [slices][32 keys][32]
  Buffer<A> gathered_queries, gathered_grads;                  // [slices][kGroup][32]
  Buffer<A> weights, grad_scores, product;                     // [kGroup][32]

  explicit Block(int64_t slices)
      : keys(slices * kSquare),
        transposed_keys(slices * kSquare),
        values(slices * kSquare),
        transposed_values(slices * kSquare),
        grad_keys(slices * kSquare),
        grad_values(slices * kSquare),
        gathered_queries(slices * kGroup * kBlock),
        gathered_grads(slices * kGroup * kBlock),
        weights(kGroup * kBlock),
        grad_scores(kGroup * kBlock),
        product(kGroup * kBlock) {}
};

template <typename T>
void prepare_block(const AttentionParams& p, const Chunk& c, int64_t first,
                   Block<Accumulate<T>>& block) {
  using A = Accumulate<T>;
  block.count = keys_in_block(c, first);
  pack_tokens<T>(p, p.key, c, first, block.keys);
  pack_tokens<T>(p, p.value, c, first, block.values);
  transpose_block<A>(block.keys, p.slices(), block.transposed_keys);
  transpose_block<A>(block.values, p.slices(), block.transposed_values);
  fill_zero<A>(block.grad_keys, p.slices() * kSquare);
  fill_zero<A>(block.grad_values, p.slices() * kSquare);
}

// A row's 32 scores to P, and its gradients of P to those of the scores.
template <typename A>
inline void differentiate(A* weights, A* grad_scores, uint32_t bits, A maximum, A factor,
                          A delta) {
  for (int i = 0; i < kBlock; i += kLanes<A>) {
    const Vec<A> all = exp2(load(weights + i) - maximum) * factor;
    const Vec<A> own = choose<A>(bits >> i, all, Vec<A>{});
    store(weights + i, own);
    store(grad_scores + i, choose<A>(bits >> i, own * (load(grad_scores + i) - delta), Vec<A>{}));
  }
}

// What a group of queries and a block of keys add to the gradients of both.
template <typename A>
void add_group(const AttentionParams& p, const int32_t* rows, const uint32_t* bits, int64_t count,
               Rows<A>& all, Block<A>& b) {
  const Panels<A> queries =
      gather_rows<A>(all.queries, p.slices(), rows, count, b.gathered_queries);
  const Panels<A> grads = gather_rows<A>(all.grads, p.slices(), rows, count, b.gathered_grads);
  multiply_by_transposed<A>(queries, b.transposed_keys, count, p.dim, b.weights);
  multiply_by_transposed<A>(grads, b.transposed_values, count, p.dim, b.grad_scores);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t row = rows[i];
    differentiate<A>(b.weights + i * kBlock, b.grad_scores + i * kBlock, bits[i], all.maxima[row],
                     all.factors[row], all.deltas[row]);
  }
  for (int64_t slice = 0; slice < p.slices(); ++slice) {
    const int64_t square = slice * kSquare;
    multiply_panel<A, 1, kBlock>(b.weights, grads.slice(slice), b.count, count,
                                 b.grad_values + square, true);
    multiply_panel<A, 1, kBlock>(b.grad_scores, queries.slice(slice), b.count, count,
                                 b.grad_keys + square, true);
    multiply_to_rows<A>(b.grad_scores, b.keys + square, rows, count, b.count,
                        all.grad_queries.slice(slice), b.product);
  }
}

// A row of panels to where a token's gradient is returned, or where its partial ones are.
template <typename T>
inline void hand_out(const AttentionParams& p, const Panels<Accumulate<T>>& from, int64_t row,
                     Accumulate<T> scale, T* to, void* partial, int64_t place) {
  using A = Accumulate<T>;
  if (partial == nullptr) {
    unpack_row<T>(from, row, to, p.dim, scale);
  } else {
    const int64_t width = p.slices() * kBlock;
    unpack_row<A>(from, row, (A*)partial + place * width, width, scale);
  }
}

template <typename T>
void backward_task(const AttentionParams& p, int64_t task) {
  using A = Accumulate<T>;
  const Chunk c = chunk_of(p, task);
  Rows<A> rows(c.queries, p.slices());
  prepare_rows<T>(p, c, rows);
  Block<A> block(p.slices());
  Active active;
  for (int64_t first = c.first_key; first < c.last_key; first += kBlock) {
    find_active(p, c, first, active);
    prepare_block<T>(p, c, first, block);
    for (int64_t begin = 0; begin < active.count; begin += kGroup) {
      add_group<A>(p, active.rows + begin, active.bits + begin,
                   min(kGroup, active.count - begin), rows, block);
    }
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t key = first + i;
      const int64_t place = (c.plane * p.query_chunks() + c.query_chunk) * p.num_keys + key;
      // The packed queries hold the scale, and a log2 e too many.
      hand_out<T>(p, {block.grad_keys, kBlock}, i, A(1 / kLog2E),
                  token_data<T>(p.grad_key, c, key), p.partial_grad_keys, place);
      hand_out<T>(p, {block.grad_values, kBlock}, i, A(1), token_data<T>(p.grad_value, c, key),
                  p.partial_grad_values, place);
    }
  }
  const A scale = A(1 / __builtin_sqrt(double(p.dim)));
  for (int64_t row = 0; row < c.queries; ++row) {
    hand_out<T>(p, rows.grad_queries, row, scale,
                token_data<T>(p.grad_query, c, c.first_query + row), p.partial_grad_queries,
                partial_row(p, c, row));
  }
}

// Sums the partial gradients of a token.
template <typename T>
void reduce_row(const AttentionParams& p, const void* partial, int64_t chunks, int64_t tokens,
                int64_t row, const Heads& heads) {
  using A = Accumulate<T>;
  const int64_t plane = row / tokens, token = row % tokens, width = p.slices() * kBlock;
  const A* from = (const A*)partial + (plane * chunks * tokens + token) * width;
  T* to = token_data<T>(heads, plane / p.heads, plane % p.heads, token);
  for (int64_t column = 0; column < p.dim; column += kLanes<A>) {
    Vec<A> total{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      total += load(from + chunk * tokens * width + column);
    }
    store_part(to, column, p.dim, total);
  }
}

template <typename T>
void reduce_queries(const AttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    reduce_row<T>(p, p.partial_grad_queries, p.key_chunks(), p.num_queries, row, p.grad_query);
  }
}

template <typename T>
void reduce_keys(const AttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    reduce_row<T>(p, p.partial_grad_keys, p.query_chunks(), p.num_keys, row, p.grad_key);
    reduce_row<T>(p, p.partial_grad_values, p.query_chunks(), p.num_keys, row, p.grad_value);
  }
}

}  // namespace

void attention_backward(const AttentionParams& params, int64_t task) {
  with_type(params.type, [&](auto number) { backward_task<decltype(number)>(params, task); });
}

void attention_reduce_queries(const AttentionParams& params, int64_t begin, int64_t end) {
  with_type(params.type,
            [&](auto number) { reduce_queries<decltype(number)>(params, begin, end); });
}

void attention_reduce_keys(const AttentionParams& params, int64_t begin, int64_t end) {
  with_type(params.type, [&](auto number) { reduce_keys<decltype(number)>(params, begin, end); });
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
