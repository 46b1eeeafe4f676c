// __half: 16 bits, rounded exactly as CUDA's conversions round.
#pragma once

#include "half_arithmetic.h"

struct __half {
  unsigned short bits;
  __half() = default;
  __half(float value) : bits(from_float(value)) {}
  __half(double value) : bits(cuda_emulator_bits<unsigned short>(static_cast<_Float16>(value))) {}
  __half(int value) : __half(static_cast<float>(value)) {}
  operator float() const { return static_cast<float>(cuda_emulator_bits<_Float16>(bits)); }

  static unsigned short from_float(float value) {
    return cuda_emulator_bits<unsigned short>(static_cast<_Float16>(value));
  }
};
using half = __half;
CUDA_EMULATOR_HALF_ARITHMETIC(__half, __half2)
using half2 = __half2;

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline __half __double2half(double value) { return value; }
inline float2 __half22float2(__half2 pair) { return {pair.x, pair.y}; }
inline __half2 __float22half2_rn(float2 pair) { return {pair.x, pair.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline __half2 __float2half2_rn(float value) { return {value, value}; }
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return cuda_emulator_bits<__half>(bits); }
