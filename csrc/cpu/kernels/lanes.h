// Vectors beyond arithmetic: bits as lanes, lanes joined, squares transposed, powers of two.

#pragma once

#include "../vec.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastinst {
namespace FASTINST_ISA {

// What comparing two Vec<T> gives, integers as wide as T, and one of them. Among equally wide types
// compilers choose differently.
template <typename T>
using Ints = decltype(Vec<T>{} < Vec<T>{});
template <typename T>
using Int = decltype(Ints<T>{}[0] + 0);

// 0, 1, 2, ...
template <typename T>
inline Ints<T> lane_numbers() {
  Ints<T> lanes;
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i;
  return lanes;
}

// The lanes of `yes` whose bit is set, the first lane being the lowest bit, and of `no` elsewhere.
template <typename T>
inline Vec<T> choose(uint32_t bits, Vec<T> yes, Vec<T> no) {
  const Ints<T> own_bit = Int<T>(1) << lane_numbers<T>();
  return (own_bit & Int<T>(bits)) != 0 ? yes : no;
}

// Bit i is set where lane i of a comparison is true.
inline uint32_t lane_bits(Ints<float> mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return uint32_t(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
#endif
}
inline uint32_t lane_bits(Ints<double> mask) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= uint32_t(mask[i] & 1) << i;
  return bits;
}

// a0 b0 a1 b1 ... of the first halves of two vectors, or of the last.
template <typename T, bool kLast>
inline Vec<T> interleave(Vec<T> a, Vec<T> b) {
  constexpr int n = kLanes<T>;
#if defined(__clang__)
  constexpr int k = kLast ? n / 2 : 0;
  if constexpr (n == 2) {
    return __builtin_shufflevector(a, b, k, k + 2);
  } else if constexpr (n == 4) {
    return __builtin_shufflevector(a, b, k, k + 4, k + 1, k + 5);
  } else if constexpr (n == 8) {
    return __builtin_shufflevector(a, b, k, k + 8, k + 1, k + 9, k + 2, k + 10, k + 3, k + 11);
  } else {
    return __builtin_shufflevector(a, b, k, k + 16, k + 1, k + 17, k + 2, k + 18, k + 3, k + 19,
                                   k + 4, k + 20, k + 5, k + 21, k + 6, k + 22, k + 7, k + 23);
  }
#else
  const Ints<T> lanes = lane_numbers<T>();
  return __builtin_shuffle(a, b, (lanes >> 1) + (lanes & 1) * n + (kLast ? n / 2 : 0));
#endif
}

// The opposite: a0 a2 ... b0 b2 ... of two vectors, or a1 a3 ... b1 b3 ...
template <typename T, bool kOdd>
inline Vec<T> every_second(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  constexpr int n = kLanes<T>, k = kOdd ? 1 : 0;
  if constexpr (n == 2) {
    return __builtin_shufflevector(a, b, k, k + 2);
  } else if constexpr (n == 4) {
    return __builtin_shufflevector(a, b, k, k + 2, k + 4, k + 6);
  } else if constexpr (n == 8) {
    return __builtin_shufflevector(a, b, k, k + 2, k + 4, k + 6, k + 8, k + 10, k + 12, k + 14);
  } else {
    return __builtin_shufflevector(a, b, k, k + 2, k + 4, k + 6, k + 8, k + 10, k + 12, k + 14,
                                   k + 16, k + 18, k + 20, k + 22, k + 24, k + 26, k + 28, k + 30);
  }
#else
  return __builtin_shuffle(a, b, lane_numbers<T>() * 2 + (kOdd ? 1 : 0));
#endif
}

// Stores the lanes whose bit is set side by side, and anything behind them, a vector in all; says
// how many they are.
template <typename T>
inline int store_chosen(Int<T>* to, Ints<T> v, uint32_t bits) {
  int count = 0;
  for (int i = 0; i < kLanes<T>; ++i) {
    to[count] = v[i];
    count += bits >> i & 1;
  }
  return count;
}
#if defined(__AVX512F__)
template <>
inline int store_chosen<float>(Int<float>* to, Ints<float> v, uint32_t bits) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(bits), (__m512i)v));
  return __builtin_popcount(bits);
}
#endif

// One number of all lanes, by an operation that joins halves until every lane holds the result.
template <typename T, typename Join>
inline T join_lanes(Vec<T> v, const Join& join) {
  for (int joined = 1; joined < kLanes<T>; joined *= 2) {
    v = join(interleave<T, false>(v, v), interleave<T, true>(v, v));
  }
  return v[0];
}
template <typename T>
inline T largest_lane(Vec<T> v) {
  return join_lanes<T>(v, [](Vec<T> a, Vec<T> b) { return max(a, b); });
}
template <typename T>
inline T sum_of_lanes(Vec<T> v) {
  return join_lanes<T>(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}

// Transposes a square: interleaving row i with row i + n / 2, log2 n times over, moves the number
// of the row into that of the lane bit by bit.
template <typename T>
inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    Vec<T> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<T, false>(rows[i], rows[i + n / 2]);
      next[2 * i + 1] = interleave<T, true>(rows[i], rows[i + n / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

// 2^x for x <= 127, within 1 unit in the last place; 0 where that is below the normal numbers.
// x = n + r: a large constant added and taken away rounds x to the integer n, and leaves n + 127 in
// the low bits, from where a shift makes it the float 2^n, or 0 for n = -127.
inline Vec<float> exp2(Vec<float> x) {
  constexpr float kRound = 12582912.0f + 127.0f;          // 1.5 * 2^23 + 127
  const Vec<float> bounded = max(broadcast(-127.0f), x);  // in this order it lets NaN pass
  const Vec<float> shifted = bounded + kRound;
  const Vec<float> r = bounded - (shifted - kRound);
  Vec<float> p = r * 1.535336196e-4f + 1.339887502e-3f;
  p = p * r + 9.618436918e-3f;
  p = p * r + 5.550332367e-2f;
  p = p * r + 2.402264774e-1f;
  p = p * r + 6.931471825e-1f;
  p = p * r + 1.0f;
  return p * bit_cast<Vec<float>>(bit_cast<Ints<float>>(shifted) << 23);
}
inline Vec<double> exp2(Vec<double> x) {
  Vec<double> result;
  for (int i = 0; i < kLanes<double>; ++i) result[i] = __builtin_exp2(x[i]);
  return result;
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
