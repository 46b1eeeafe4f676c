// Vectors of as many floats or doubles as the instruction set's registers hold.
//
// Plain arithmetic on them is the compiler's vector extension (GCC and Clang, on any processor);
// a * b + c becomes a fused multiply-add where there is one. For files of cpu/kernels only, which
// the build compiles with FASTINST_ISA naming their namespace.

#pragma once

#include <stdint.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastinst {
namespace FASTINST_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VecOf<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// 16-bit floats are loaded and stored only; arithmetic is in Accumulate<T>.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::type;

template <typename To, typename From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// Scalars ------------------------------------------------------------------------------------

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline float to_float(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
inline float to_float(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  // Shifted into a float's place, the exponent is off by 127 - 15, which a product corrects, also
  // for subnormal numbers; infinities and NaN need the exponent of all ones.
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  float value = bit_cast<float>(rest) * 0x1p112f;
  if (rest >= 0x7c00u << 13) value = bit_cast<float>(rest | 0x7f800000u);
  return bit_cast<float>(bit_cast<uint32_t>(value) | sign);
#endif
}

template <typename T>
T from_float(Accumulate<T> x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline double from_float<double>(double x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};  // to nearest, ties to even
}
template <>
inline Half from_float<Half>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00)};   // NaN
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00)};  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 1/2 lets the hardware round at the last bit that a half has.
    const float shifted = bit_cast<float>(magnitude) + 0.5f;
    return {uint16_t(sign | (bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1);
  return {uint16_t(sign | (rounded >> 13))};
#endif
}

// Vectors ------------------------------------------------------------------------------------

template <typename T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // unlike x + 0, keeps the sign of -0
}

// kLanes<Accumulate<T>> elements, converted.
template <typename T>
inline Vec<Accumulate<T>> load(const T* from) {
  using A = Accumulate<T>;
  Vec<A> v;
  for (int i = 0; i < kLanes<A>; ++i) v[i] = to_float(from[i]);
  return v;
}
template <>
inline Vec<float> load<float>(const float* from) {
  Vec<float> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <>
inline Vec<double> load<double>(const double* from) {
  Vec<double> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <>
inline Vec<float> load<BFloat16>(const BFloat16* from) {
  typedef uint16_t Bits __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  Bits bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return bit_cast<Vec<float>>(__builtin_convertvector(bits, Wide) << 16);
}
#if defined(__AVX512F__)
template <>
inline Vec<float> load<Half>(const Half* from) {
  // Masked, though by nothing: GCC warns of _mm512_cvtph_ps that a variable of its own is not set.
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load<Half>(const Half* from) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
#endif

// The first `count` elements, and zeros.
template <typename T>
inline Vec<Accumulate<T>> load_first(const T* from, int count) {
  Vec<Accumulate<T>> v{};
  for (int i = 0; i < count; ++i) v[i] = to_float(from[i]);
  return v;
}

template <typename T>
inline void store(T* to, Vec<Accumulate<T>> v) {
  for (int i = 0; i < kLanes<Accumulate<T>>; ++i) to[i] = from_float<T>(v[i]);
}
template <>
inline void store<float>(float* to, Vec<float> v) {
  __builtin_memcpy(to, &v, sizeof v);
}
template <>
inline void store<double>(double* to, Vec<double> v) {
  __builtin_memcpy(to, &v, sizeof v);
}
template <typename T>
inline void store_first(T* to, Vec<Accumulate<T>> v, int count) {
  for (int i = 0; i < count; ++i) to[i] = from_float<T>(v[i]);
}

template <typename V>
inline V max(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
inline V min(V a, V b) {
  return a < b ? a : b;
}

inline float sum(Vec<float> v) {
  float total = 0;
  for (int i = 0; i < kLanes<float>; ++i) total += v[i];
  return total;
}
inline double sum(Vec<double> v) {
  double total = 0;
  for (int i = 0; i < kLanes<double>; ++i) total += v[i];
  return total;
}

// e^x within 2 units in the last place; 0 below the normal numbers, infinity above the largest.
// x = n ln 2 + r: a large constant added and taken away rounds x / ln 2 to the integer n and
// leaves it in the low bits, from where a shift makes it 2^n.
inline Vec<float> exp(Vec<float> x) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  const Vec<float> bounded = min(max(x, broadcast(-87.3f)), broadcast(88.7f));
  const Vec<float> shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23
  const Vec<float> n = shifted - 12582912.0f;
  const Vec<float> r = n * 2.12194440e-4f + (n * -0.693359375f + bounded);
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // In two halves: 2^128 itself is no float.
  const Ints power = bit_cast<Ints>(shifted) - 0x4b400000;
  const Ints half = power >> 1;
  const Vec<float> scale = bit_cast<Vec<float>>((half + 127) << 23);
  const Vec<float> rest = bit_cast<Vec<float>>((power - half + 127) << 23);
  const Vec<float> result = p * scale * rest;
  const Vec<float> above = x > 88.72283f ? broadcast(__builtin_inff()) : result;
  return x < -87.3f ? Vec<float>{} : (x != x ? x : above);
}
inline Vec<double> exp(Vec<double> x) {
  Vec<double> result;
  for (int i = 0; i < kLanes<double>; ++i) result[i] = __builtin_exp(x[i]);
  return result;
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
