// __nv_bfloat16: the upper 16 bits of a float, rounded to nearest, ties to even.
#pragma once

#include "half_arithmetic.h"

struct __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) : bits(from_float(value)) {}
  __nv_bfloat16(double value) : bits(from_double(value)) {}
  __nv_bfloat16(int value) : __nv_bfloat16(static_cast<float>(value)) {}
  operator float() const { return __uint_as_float(static_cast<unsigned>(bits) << 16); }

  static unsigned short from_float(float value) {
    if (std::isnan(value)) return 0x7fff;
    const unsigned wide = __float_as_uint(value);
    return static_cast<unsigned short>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
  }
  // By way of a float rounded to odd, which keeps what decides the second rounding.
  static unsigned short from_double(double value) {
    float narrow = static_cast<float>(value);
    if (std::isfinite(value) && std::isfinite(narrow) && static_cast<double>(narrow) != value) {
      if (std::fabs(static_cast<double>(narrow)) > std::fabs(value)) {
        narrow = std::nextafter(narrow, 0.0f);
      }
      narrow = __uint_as_float(__float_as_uint(narrow) | 1u);
    }
    return from_float(narrow);
  }
};
using nv_bfloat16 = __nv_bfloat16;
CUDA_EMULATOR_HALF_ARITHMETIC(__nv_bfloat16, __nv_bfloat162)
using nv_bfloat162 = __nv_bfloat162;

inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __nv_bfloat16 __double2bfloat16(double value) { return value; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {pair.x, pair.y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) { return {pair.x, pair.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 value) { return {value, value}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return cuda_emulator_bits<__nv_bfloat16>(bits);
}
