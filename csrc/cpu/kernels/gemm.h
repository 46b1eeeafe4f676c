// The matrix product  c[m][n] (+)= sum over k of a[m][k] b[k][n]  of panels that lie in cache.
//
// b is a panel one tile wide: two vectors side by side for every k, columns in the lanes. A tile of
// c, as many rows as leave registers for two vectors of b, is summed in registers over all of k:
// each step loads b's two vectors and broadcasts one number of every row of a. With AVX-512 that is
// 16 loads for 28 multiply-adds, so the loads never hold the multipliers up (98 % of their peak was
// measured). The strides of a are compile-time constants, so that one register addresses all rows.
//
// The caller keeps k so short that b's panel stays in the first-level cache while all rows pass by.
// Every call sums from zero and adds its total to c: long sums are rounded by blocks, not in a row.

#pragma once

#include "../vec.h"

namespace fastinst {
namespace FASTINST_ISA {

// Rows of c in registers: of 32 (AVX-512, ARM) or 16 there are two for b, and, where a product
// cannot be fused or cannot read memory, two for the broadcast and the product.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 5;
#endif

// Columns of c in registers.
template <typename T>
constexpr int kTileColumns = 2 * kLanes<T>;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <typename T>
struct Product {
  const T* a;
  const T* b;
  T* c;
  int64_t rows, depth;  // of m and k
  int64_t b_step;       // from one k to the next
  int64_t c_row;        // from one m to the next
  bool add;             // to what c holds
};

template <typename T, int kRowStride, int kStep, int kRows>
inline void multiply_tile(const Product<T>& p) {
  constexpr int kLanes = FASTINST_ISA::kLanes<T>;
  Vec<T> sums[kRows][2] = {};
  const T* a = p.a;
  const T* b = p.b;
  for (int64_t k = 0; k < p.depth; ++k, a += kStep, b += p.b_step) {
    const Vec<T> left = load(b), right = load(b + kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const Vec<T> x = broadcast(a[row * kRowStride]);
      sums[row][0] += x * left;
      sums[row][1] += x * right;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    T* c = p.c + row * p.c_row;
    if (p.add) {
      sums[row][0] += load(c);
      sums[row][1] += load(c + kLanes);
    }
    store(c, sums[row][0]);
    store(c + kLanes, sums[row][1]);
  }
}

// multiply_tile for a number of rows known at run time, 1 ... kRows.
template <typename T, int kRowStride, int kStep, int kRows>
inline void multiply_rows(const Product<T>& p, int64_t rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_rows<T, kRowStride, kStep, kRows - 1>(p, rows);
  }
  multiply_tile<T, kRowStride, kStep, kRows>(p);
}

// a[m][k] is at a[m * kRowStride + k * kStep]. Rows are dealt out evenly, so that no tile is so
// low that the multipliers wait for each other's results.
template <typename T, int kRowStride, int kStep>
inline void multiply(Product<T> p) {
  const int64_t tiles = ceil_div(p.rows, kTileRows);
  const T* a = p.a;
  T* c = p.c;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = tile * p.rows / tiles, end = (tile + 1) * p.rows / tiles;
    p.a = a + begin * kRowStride;
    p.c = c + begin * p.c_row;
    multiply_rows<T, kRowStride, kStep, kTileRows>(p, end - begin);
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
