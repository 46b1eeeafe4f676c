// softmax(query key^T / sqrt(D)) value over the keys that a query attends to: the forward loops.
//
// A task goes through its chunk of keys in blocks of 32. For each block, key^T and value are packed
// into the first-level cache, and the queries that attend to none of its keys are left out. The
// scores of a group of queries have their keys in the lanes, so that a row's maximum and sum are
// vectors too; they become weights in place and multiply the values while they are in cache.
//
// The softmax is online: weights are 2^(score - maximum), where `maximum` is that of the blocks so
// far, give or take kSlack. A larger score by less than that does no harm to the float's exponent,
// so the past results of a row are seldom rescaled, and a row's maximum across lanes is seldom
// needed. Scores are in units of log 2, by a factor in the packed queries.

#include "attention_blocks.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

constexpr float kSlack = 8;

// Finite, so that a row of which no key has been seen is never -inf - -inf.
template <typename A>
constexpr A kLowest = A(sizeof(A) == 8 ? -1.7e308 : -3.4e38);

// Results so far, of a task's queries.
template <typename A>
struct State {
  int64_t queries, slices;
  Buffer<A> maxima, sums, output_memory;  // [queries], [queries][kLanes], [slices][queries][32]
  Panels<A> outputs;

  State(int64_t queries, int64_t slices)
      : queries(queries),
        slices(slices),
        maxima(queries),
        sums(queries * kLanes<A>),
        output_memory(slices * queries * kBlock),
        outputs{output_memory, queries} {
    for (int64_t i = 0; i < queries; ++i) maxima[i] = kLowest<A>;
    fill_zero<A>(sums, queries * kLanes<A>);
    fill_zero<A>(output_memory, slices * queries * kBlock);
  }
};

template <typename A>
inline void rescale(State<A>& state, int64_t row, A factor) {
  A* sums = state.sums + row * kLanes<A>;
  store(sums, load(sums) * factor);
  for (int64_t slice = 0; slice < state.slices; ++slice) {
    A* output = state.outputs.slice(slice) + row * kBlock;
    for (int64_t i = 0; i < kBlock; i += kLanes<A>) store(output + i, load(output + i) * factor);
  }
}

// A row's 32 scores to weights, and their sum into the state.
template <typename A>
inline void weigh(A* scores, uint32_t bits, State<A>& state, int64_t row) {
  constexpr int kVectors = kBlock / kLanes<A>;
  Vec<A> values[kVectors];
  const Vec<A> never = broadcast(-A(__builtin_inff()));
  Vec<A> top = never;
  for (int i = 0; i < kVectors; ++i) {
    values[i] = choose<A>(bits >> (i * kLanes<A>), load(scores + i * kLanes<A>), never);
    top = max(values[i], top);
  }
  A maximum = state.maxima[row];
  if (lane_bits(top > maximum + A(kSlack)) != 0) {
    const A higher = largest_lane<A>(top);
    if (maximum > kLowest<A>) rescale(state, row, exp2_of(maximum - higher));
    state.maxima[row] = maximum = higher;
  }
  Vec<A> total = load(state.sums + row * kLanes<A>);
  for (int i = 0; i < kVectors; ++i) {
    const Vec<A> weights = exp2(values[i] - maximum);
    total += weights;
    store(scores + i * kLanes<A>, weights);
  }
  store(state.sums + row * kLanes<A>, total);
}

// All blocks of a chunk. Without outputs there are maxima and sums only.
template <typename T, bool kOutputs>
void attend(const AttentionParams& p, const Chunk& c, State<Accumulate<T>>& state) {
  using A = Accumulate<T>;
  const int64_t slices = p.slices();
  Buffer<A> queries(slices * c.queries * kBlock), gathered_queries(slices * kGroup * kBlock);
  Buffer<A> keys(slices * kSquare), transposed_keys(slices * kSquare), values(slices * kSquare);
  Buffer<A> weights(kGroup * kBlock), product(kGroup * kBlock);
  pack_queries<T>(p, c, queries);
  Active active;
  for (int64_t first = c.first_key; first < c.last_key; first += kBlock) {
    find_active(p, c, first, active);
    if (active.count == 0) continue;
    pack_tokens<T>(p, p.key, c, first, keys);
    transpose_block<A>(keys, slices, transposed_keys);
    if (kOutputs) pack_tokens<T>(p, p.value, c, first, values);
    for (int64_t begin = 0; begin < active.count; begin += kGroup) {
      const int64_t count = min(kGroup, active.count - begin);
      const int32_t* rows = active.rows + begin;
      const Panels<A> group =
          gather_rows<A>({queries, c.queries}, slices, rows, count, gathered_queries);
      multiply_by_transposed<A>(group, transposed_keys, count, p.dim, weights);
      for (int64_t i = 0; i < count; ++i) {
        weigh<A>(weights + i * kBlock, active.bits[begin + i], state, rows[i]);
      }
      for (int64_t slice = 0; kOutputs && slice < slices; ++slice) {
        multiply_to_rows<A>(weights, values + slice * kSquare, rows, count,
                            keys_in_block(c, first), state.outputs.slice(slice), product);
      }
    }
  }
}

template <typename A>
void hand_out_statistics(const AttentionParams& p, int64_t row, int64_t place, State<A>& state) {
  ((A*)p.maxima)[place] = state.maxima[row];
  ((A*)p.sums)[place] = sum_of_lanes<A>(load(state.sums + row * kLanes<A>));
}

// What makes weights of a row's sum to 1. If all scores are -inf, they and the result stay 0, which
// is what PyTorch returns.
template <typename A>
inline A normalizer(A sum) {
  return sum == 0 ? A(0) : 1 / sum;
}

template <typename T>
void forward_task(const AttentionParams& p, int64_t task) {
  using A = Accumulate<T>;
  const Chunk c = chunk_of(p, task);
  State<A> state(c.queries, p.slices());
  attend<T, true>(p, c, state);
  const int64_t width = p.slices() * kBlock;
  for (int64_t row = 0; row < c.queries; ++row) {
    if (p.key_chunks() == 1) {
      unpack_row<T>(state.outputs, row, token_data<T>(p.output, c, c.first_query + row), p.dim,
                    normalizer(sum_of_lanes<A>(load(state.sums + row * kLanes<A>))));
    } else {
      const int64_t place = partial_row(p, c, row);
      hand_out_statistics(p, row, place, state);
      unpack_row<A>(state.outputs, row, (A*)p.partial_outputs + place * width, width, 1);
    }
  }
}

template <typename T>
void statistics_task(const AttentionParams& p, int64_t task) {
  const Chunk c = chunk_of(p, task);
  State<Accumulate<T>> state(c.queries, 0);
  attend<T, false>(p, c, state);
  for (int64_t row = 0; row < c.queries; ++row) {
    hand_out_statistics(p, row, partial_row(p, c, row), state);
  }
}

template <typename T>
void combine_row(const AttentionParams& p, int64_t plane, int64_t query) {
  using A = Accumulate<T>;
  const int64_t chunks = p.key_chunks(), width = p.slices() * kBlock;
  const int64_t first = plane * chunks * p.num_queries + query;
  const A* maxima = (const A*)p.maxima + first;
  const A* outputs = (const A*)p.partial_outputs + first * width;
  const Statistics<A> all = combined_statistics<A>(p, plane, query);
  T* output = token_data<T>(p.output, plane / p.heads, plane % p.heads, query);
  for (int64_t column = 0; column < p.dim; column += kLanes<A>) {
    Vec<A> result{};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t place = chunk * p.num_queries;
      result += load(outputs + place * width + column) * exp2_of(maxima[place] - all.maximum);
    }
    store_part(output, column, p.dim, result * normalizer(all.sum));
  }
}

template <typename T>
void combine(const AttentionParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    combine_row<T>(p, row / p.num_queries, row % p.num_queries);
  }
}

}  // namespace

void attention_forward(const AttentionParams& params, int64_t task) {
  with_type(params.type, [&](auto number) { forward_task<decltype(number)>(params, task); });
}

void attention_statistics(const AttentionParams& params, int64_t task) {
  with_type(params.type, [&](auto number) { statistics_task<decltype(number)>(params, task); });
}

void attention_combine(const AttentionParams& params, int64_t begin, int64_t end) {
  with_type(params.type, [&](auto number) { combine<decltype(number)>(params, begin, end); });
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
