// Bilinear samples of packed masks at points of the unit square.

#pragma once

#include "bilinear.h"

namespace fastinst {
namespace FASTINST_ISA {

struct Mask {
  const uint32_t* bits;  // [height, words]
  int height, words;
};

// 32 bits from each of kLanes bytes on, of memory that begins at a word.
template <typename T>
inline Ints<T> load_bits(const uint8_t* bytes, Ints<T> place) {
  Ints<T> bits;
  for (int i = 0; i < kLanes<T>; ++i) {
    int32_t word;
    __builtin_memcpy(&word, bytes + place[i], sizeof word);
    bits[i] = word;
  }
  return bits;
}
#if defined(__AVX512F__)
template <>
inline Ints<float> load_bits<float>(const uint8_t* bytes, Ints<float> place) {
  // Masked, though by nothing: GCC warns of the plain one that a variable of its own is not set.
  return (Ints<float>)_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xffff, (__m512i)place,
                                                  bytes, 1);
}
#elif defined(__AVX2__)
template <>
inline Ints<float> load_bits<float>(const uint8_t* bytes, Ints<float> place) {
  return (Ints<float>)_mm256_i32gather_epi32((const int*)bytes, (__m256i)place, 1);
}
#endif

// One axis of a mask: the two pixels that a point lies between, and their weights, 0 outside.
template <typename T>
struct Ends {
  Ints<T> pixels[2];
  Vec<T> weights[2];
};

template <typename T>
inline Ends<T> ends(Vec<T> at, int size) {
  const Between<T> b = between<T>(at, size);
  return {{max(b.cell - 1, Ints<T>{}), min(b.cell, Ints<T>{} + (size - 1))},
          {b.cell > 0 ? b.weights[0] : Vec<T>{}, b.cell < size ? b.weights[1] : Vec<T>{}}};
}

template <typename T>
inline Vec<T> sample_bits(const Mask& mask, Vec<T> x, Vec<T> y) {
  const Ends<T> column = ends<T>(x, 32 * mask.words), row = ends<T>(y, mask.height);
  // Both columns are among the 32 bits from the left one's byte on, or from the row's last word.
  const int row_bytes = 4 * mask.words;
  const Ints<T> byte = min(column.pixels[0] >> 3, Ints<T>{} + (row_bytes - 4));
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(mask.bits);
  Vec<T> sum{};
  for (int end = 0; end < 2; ++end) {
    const Ints<T> bits = load_bits<T>(bytes, row.pixels[end] * row_bytes + byte);
    Vec<T> inside{};
    for (int side = 0; side < 2; ++side) {
      const Ints<T> bit = (bits >> (column.pixels[side] - byte * 8)) & 1;
      inside += bit != 0 ? column.weights[side] : Vec<T>{};
    }
    sum += inside * row.weights[end];
  }
  return sum;
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
