// Run-length encoding of masks on the CPU: the parameters, and what each instruction set provides.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {
namespace encode_masks {

struct Params {
  bool packed;
  const void* masks;  // [N, height, width] of bytes or ceil(width / 32) words
  int64_t height, width;
};

// A block is 64 columns, a word of one of its columns 64 rows.
constexpr int64_t kBlock = 64;

}  // namespace encode_masks

// Columns [64, ceil(height / 64)] of bits, from column `first` of a mask on. Bits past the mask's
// height or width are 0.
FASTINST_DECLARE(void gather_columns(const encode_masks::Params& params, int64_t mask,
                                     int64_t first, uint64_t* columns))

}  // namespace fastinst
