// Arithmetic of the 16-bit types. Float holds sums and products of two of them well enough that
// rounding its result is the same as rounding once. The fused forms round once, by way of double.
#pragma once

#define CUDA_EMULATOR_HALF_ARITHMETIC(T, Pair)                                              \
  inline T operator+(T a, T b) { return float(a) + float(b); }                              \
  inline T operator-(T a, T b) { return float(a) - float(b); }                              \
  inline T operator*(T a, T b) { return float(a) * float(b); }                              \
  inline T operator/(T a, T b) { return float(a) / float(b); }                              \
  inline T operator-(T a) { return -float(a); }                                             \
  inline T& operator+=(T& a, T b) { return a = a + b; }                                     \
  inline T& operator-=(T& a, T b) { return a = a - b; }                                     \
  inline T& operator*=(T& a, T b) { return a = a * b; }                                     \
  inline bool operator<(T a, T b) { return float(a) < float(b); }                           \
  inline bool operator>(T a, T b) { return float(a) > float(b); }                           \
  inline bool operator<=(T a, T b) { return float(a) <= float(b); }                         \
  inline bool operator>=(T a, T b) { return float(a) >= float(b); }                         \
  inline bool operator==(T a, T b) { return float(a) == float(b); }                         \
  inline bool operator!=(T a, T b) { return float(a) != float(b); }                         \
  inline T __hadd(T a, T b) { return a + b; }                                               \
  inline T __hsub(T a, T b) { return a - b; }                                               \
  inline T __hmul(T a, T b) { return a * b; }                                               \
  inline T __hfma(T a, T b, T c) { return double(a) * double(b) + double(c); }              \
  struct alignas(4) Pair {                                                                  \
    T x, y;                                                                                 \
  };                                                                                        \
  inline Pair __hadd2(Pair a, Pair b) { return {a.x + b.x, a.y + b.y}; }                    \
  inline Pair __hsub2(Pair a, Pair b) { return {a.x - b.x, a.y - b.y}; }                    \
  inline Pair __hmul2(Pair a, Pair b) { return {a.x * b.x, a.y * b.y}; }                    \
  inline Pair __hfma2(Pair a, Pair b, Pair c) {                                             \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                  \
  }                                                                                         \
  inline T __low2##T(Pair pair) { return pair.x; }                                          \
  inline T __high2##T(Pair pair) { return pair.y; }                                         \
  inline Pair make_##Pair(T x, T y) { return {x, y}; }                                      \
  inline T atomicAdd(T* address, T value) {                                                 \
    return cuda_emulator::exchange(address, [=](T before) { return before + value; });      \
  }
