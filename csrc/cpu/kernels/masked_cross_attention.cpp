// The mask of masked cross-attention, as its loops want it: of a block of 32 pixels, one word for
// each query, all queries' words side by side.

#include "masked_cross_attention.h"

#include "bits.h"
#include "buffer.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

void pack(const uint8_t* bytes, int64_t count, uint32_t* words) {
  for (; count >= 64; bytes += 64, words += 2, count -= 64) {
    const uint64_t bits = bits_of(bytes);
    words[0] = uint32_t(bits);
    words[1] = uint32_t(bits >> 32);
  }
  if (count == 0) return;
  uint8_t last[64] = {};
  __builtin_memcpy(last, bytes, count);
  const uint64_t bits = bits_of(last);
  words[0] = uint32_t(bits);
  if (count > 32) words[1] = uint32_t(bits >> 32);
}

void pack_row(const AttendParams& p, int64_t image, int64_t query, uint32_t* row) {
  const int64_t words = p.words();
  const uint32_t inside = 0xffffffffu >> (32 * words - p.pixels);  // of the last word
  uint32_t any = 0;
  if (query < p.guided) {
    const int64_t offset = image * p.batch_stride + query * p.query_stride;
    if (p.packed) {
      __builtin_memcpy(row, (const uint32_t*)p.attend + offset, words * sizeof(uint32_t));
      row[words - 1] &= inside;
    } else {
      pack((const uint8_t*)p.attend + offset, p.pixels, row);
    }
    for (int64_t word = 0; word < words; ++word) any |= row[word];
  }
  if (any == 0) {
    for (int64_t word = 0; word < words; ++word) row[word] = 0xffffffffu;
    row[words - 1] = inside;
  }
}

}  // namespace

void attend_bits(const AttendParams& p, int64_t begin, int64_t end) {
  Buffer<uint32_t> row(p.words());
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / p.queries, query = i % p.queries;
    pack_row(p, image, query, row);
    uint32_t* column = p.bits + image * p.words() * p.queries + query;
    for (int64_t word = 0; word < p.words(); ++word) column[word * p.queries] = row[word];
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
