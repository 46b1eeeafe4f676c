// What the host side of masked cross-attention asks of its loops; the attention is in attention.h.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {

struct AttendParams {
  int64_t batch, guided, queries, pixels;  // guided: the queries that have a mask
  bool packed;
  // [B, guided, pixels] bytes of 0 or 1, or words of 32 bits if packed, side by side; strides in
  // elements
  const void* attend;
  int64_t batch_stride, query_stride;
  // [B, words, queries]: those that a query attends to, everywhere instead of nowhere
  uint32_t* bits;

  FASTINST_INLINE int64_t words() const { return (pixels + 31) / 32; }
};

// Rows [begin, end) of the [B * queries].
FASTINST_DECLARE(void attend_bits(const AttendParams& params, int64_t begin, int64_t end))

}  // namespace fastinst
