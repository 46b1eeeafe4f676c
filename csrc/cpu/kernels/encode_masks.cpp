// The columns of masks as bits: COCO's runs go down columns, masks lie in rows.
//
// 64 pixels of a row become one word, and 64 rows of such words are transposed in registers and the
// first cache; squares that are all 0 or all 1, which most are, are not.

#include "encode_masks.h"

#include "bits.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

using namespace encode_masks;

// 64 pixels from column `first` of a row on; 0 past the width.
uint64_t load_row(const Params& params, int64_t row, int64_t first) {
  const int64_t left = params.width - first;
  if (params.packed) {
    const int64_t words = (params.width + 31) / 32;
    const uint32_t* from =
        static_cast<const uint32_t*>(params.masks) + row * words + first / 32;
    return from[0] | (left > 32 ? uint64_t(from[1]) << 32 : 0);
  }
  const uint8_t* from = static_cast<const uint8_t*>(params.masks) + row * params.width + first;
  if (left >= kBlock) return bits_of(from);
  uint8_t padded[kBlock] = {};
  __builtin_memcpy(padded, from, left);
  return bits_of(padded);
}

// Bit x of word y becomes bit y of word x: halves of the square are exchanged, then quarters of
// those, and so on.
void transpose(uint64_t square[kBlock]) {
  uint64_t low = 0xffffffff;
  for (int half = 32; half > 0; half /= 2, low ^= low << half) {
    for (int start = 0; start < kBlock; start += 2 * half) {
      for (int i = start; i < start + half; ++i) {
        const uint64_t differ = (square[i] >> half ^ square[i + half]) & low;
        square[i] ^= differ << half;
        square[i + half] ^= differ;
      }
    }
  }
}

}  // namespace

void gather_columns(const Params& params, int64_t mask, int64_t first, uint64_t* columns) {
  const int64_t words = (params.height + kBlock - 1) / kBlock;
  for (int64_t word = 0; word < words; ++word) {
    const int64_t row = word * kBlock;
    const int64_t rows = params.height - row < kBlock ? params.height - row : kBlock;
    uint64_t square[kBlock] = {};
    uint64_t any = 0, all = ~uint64_t(0);
    for (int64_t y = 0; y < rows; ++y) {
      square[y] = load_row(params, mask * params.height + row + y, first);
      any |= square[y];
      all &= square[y];
    }
    const bool uniform = any == 0 || (all == ~uint64_t(0) && rows == kBlock);
    if (!uniform) transpose(square);
    for (int64_t x = 0; x < kBlock; ++x) columns[x * words + word] = square[x];
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
