// What the host side of the attention mask asks of its loops.

#pragma once

#include <stdint.h>

#include "../isa.h"
#include "float_type.h"

namespace fastinst {

// A task makes this many words, of 32 pixels each, of all queries of an image.
constexpr int64_t kMaskTaskWords = 8;

struct AttentionMaskParams {
  FloatType type;
  int64_t batch, queries, pixels, channels;
  const void* embeddings;  // [B, N, C] with channels side by side; strides in elements
  int64_t embeddings_batch_stride, embedding_stride;
  const void* features;  // [B, L, C] likewise
  int64_t features_batch_stride, feature_stride;
  const void* bias;  // [B, N] without gaps, in the type of sums; or none
  uint32_t* bits;    // [B, N, words]

  FASTINST_INLINE int64_t words() const { return (pixels + 31) / 32; }
  FASTINST_INLINE int64_t tasks_per_image() const {
    return (words() + kMaskTaskWords - 1) / kMaskTaskWords;
  }
};

FASTINST_DECLARE(void attention_mask_task(const AttentionMaskParams& params, int64_t task))

}  // namespace fastinst
