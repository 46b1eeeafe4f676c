// Attention on the CPU: what its host side and its loops agree on.
//
// The rows of scores, one for each query of a head, are cut into chunks of queries and chunks of
// keys; a task is one chunk of each, of one head. Chunks depend on the shapes only, never on the
// number of threads, and neither does the order in which their results are added up.

#pragma once

#include <stdint.h>

#include "../isa.h"
#include "float_type.h"

namespace fastinst {

constexpr int64_t kQueryChunk = 512;
constexpr int64_t kKeyChunk = 1024;

// [B, H, N, D] with numbers side by side; strides in elements.
struct Heads {
  void* data;
  int64_t batch_stride, head_stride, token_stride;
};

struct AttentionParams {
  FloatType type;
  int64_t batch, heads, num_queries, num_keys, dim;
  Heads query, key, value;
  // [B, ceil(num_keys / 32), num_queries]: bit l % 32 of word l / 32 is set where a query attends
  // to key l < num_keys. None: everywhere.
  const uint32_t* bits;

  // Forward: the output itself, or with several chunks of keys one partial result from each.
  // Sums are of the chunk's 2^(score - maximum), and outputs are weighted likewise.
  Heads output;
  void* partial_outputs;  // [B, H, key chunks, num_queries, slices * 32]
  void* maxima;           // [B, H, key chunks, num_queries], scores in units of log 2
  void* sums;             // likewise

  // Backward: the gradients, or partial ones as above where several chunks add to the same.
  Heads grad, grad_query, grad_key, grad_value;
  void* partial_grad_queries;  // [B, H, key chunks, num_queries, slices * 32]
  void* partial_grad_keys;     // [B, H, query chunks, num_keys, slices * 32]
  void* partial_grad_values;   // likewise

  FASTINST_INLINE int64_t query_chunks() const {
    return (num_queries + kQueryChunk - 1) / kQueryChunk;
  }
  FASTINST_INLINE int64_t key_chunks() const { return (num_keys + kKeyChunk - 1) / kKeyChunk; }
  FASTINST_INLINE int64_t tasks() const { return batch * heads * query_chunks() * key_chunks(); }
  // Of 32 numbers (kernels/panels.h).
  FASTINST_INLINE int64_t slices() const { return (dim + 31) / 32; }
};

// A task's part of the output; a task's maxima and sums alone, which the gradient starts from; and
// a task's part of the gradients.
FASTINST_DECLARE(void attention_forward(const AttentionParams& params, int64_t task))
FASTINST_DECLARE(void attention_statistics(const AttentionParams& params, int64_t task))
FASTINST_DECLARE(void attention_backward(const AttentionParams& params, int64_t task))

// Outputs, gradients of queries, gradients of keys and values from the partial ones: rows
// [begin, end) of the [B * H * tokens] there are.
FASTINST_DECLARE(void attention_combine(const AttentionParams& params, int64_t begin, int64_t end))
FASTINST_DECLARE(void attention_reduce_queries(const AttentionParams& params, int64_t begin,
                                               int64_t end))
FASTINST_DECLARE(void attention_reduce_keys(const AttentionParams& params, int64_t begin,
                                            int64_t end))

}  // namespace fastinst
