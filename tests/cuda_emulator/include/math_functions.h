// CUDA's arithmetic functions. The approximate ones are exact here: a test must not depend on their
// last bits.
#pragma once

template <typename To, typename From>
To cuda_emulator_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "");
  To bits;
  std::memcpy(&bits, &value, sizeof(To));
  return bits;
}

inline int __float_as_int(float value) { return cuda_emulator_bits<int>(value); }
inline unsigned __float_as_uint(float value) { return cuda_emulator_bits<unsigned>(value); }
inline float __int_as_float(int bits) { return cuda_emulator_bits<float>(bits); }
inline float __uint_as_float(unsigned bits) { return cuda_emulator_bits<float>(bits); }
inline long long __double_as_longlong(double value) { return cuda_emulator_bits<long long>(value); }
inline double __longlong_as_double(long long bits) { return cuda_emulator_bits<double>(bits); }

// The volatile results keep the compiler from contracting what CUDA rounds separately.
inline float __fadd_rn(float a, float b) { volatile float sum = a + b; return sum; }
inline float __fsub_rn(float a, float b) { return __fadd_rn(a, -b); }
inline float __fmul_rn(float a, float b) { volatile float product = a * b; return product; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { volatile double sum = a + b; return sum; }
inline double __dsub_rn(double a, double b) { return __dadd_rn(a, -b); }
inline double __dmul_rn(double a, double b) { volatile double product = a * b; return product; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __mul24(int a, int b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}

#define CUDA_EMULATOR_MINIMUM_MAXIMUM(T)                                          \
  inline T min(T a, T b) { return b < a ? b : a; }                                \
  inline T max(T a, T b) { return a < b ? b : a; }
CUDA_EMULATOR_MINIMUM_MAXIMUM(int)
CUDA_EMULATOR_MINIMUM_MAXIMUM(unsigned)
CUDA_EMULATOR_MINIMUM_MAXIMUM(long)
CUDA_EMULATOR_MINIMUM_MAXIMUM(unsigned long)
CUDA_EMULATOR_MINIMUM_MAXIMUM(long long)
CUDA_EMULATOR_MINIMUM_MAXIMUM(unsigned long long)
#undef CUDA_EMULATOR_MINIMUM_MAXIMUM
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

// CUDA's overloads for float, which C's global names lack.
using std::abs;
using std::ceil;
using std::exp;
using std::exp2;
using std::floor;
using std::fma;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::log;
using std::log1p;
using std::log2;
using std::rint;
using std::sqrt;
using std::trunc;
