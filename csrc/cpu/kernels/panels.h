// Matrices as panels of 32 columns, zeros behind the last, and their products.
//
// A matrix [rows][columns] is held as slices [ceil(columns / 32)][panel_rows][32], so that one
// product (gemm.h) with a constant row stride does for every number of columns, and its other
// factor, 32 rows or columns at a time, stays in the first-level cache.

#pragma once

#include "../vec.h"
#include "buffer.h"
#include "gemm.h"
#include "lanes.h"

namespace fastinst {
namespace FASTINST_ISA {

constexpr int64_t kBlock = 32;
constexpr int64_t kSquare = kBlock * kBlock;

template <typename A>
struct Panels {
  A* data;
  int64_t panel_rows;

  A* slice(int64_t i) const { return data + i * panel_rows * kBlock; }
};

// A vector of a row of `columns` numbers, from `column` on; zeros past the last.
template <typename T>
inline Vec<Accumulate<T>> load_part(const T* row, int64_t column, int64_t columns) {
  constexpr int64_t kWidth = kLanes<Accumulate<T>>;
  if (column + kWidth <= columns) return load(row + column);
  return load_first(row + column, int(columns > column ? columns - column : 0));
}

// The same stored; what is past the last column is left out.
template <typename T>
inline void store_part(T* row, int64_t column, int64_t columns, Vec<Accumulate<T>> v) {
  constexpr int64_t kWidth = kLanes<Accumulate<T>>;
  if (column + kWidth <= columns) {
    store(row + column, v);
  } else if (column < columns) {
    store_first(row + column, v, int(columns - column));
  }
}

// [rows][columns] with numbers side by side to panels, times `scale`. Rows are often so far apart
// that the processor does not see the next ones coming: the row a block further on is asked for.
template <typename T>
inline void pack_rows(const T* from, int64_t stride, int64_t rows, int64_t columns,
                      Accumulate<T> scale, const Panels<Accumulate<T>>& to) {
  using A = Accumulate<T>;
  for (int64_t row = 0; row < rows; ++row, from += stride) {
    for (int64_t slice = 0; slice * kBlock < columns; ++slice) {
      A* place = to.slice(slice) + row * kBlock;
      for (int64_t i = 0; i < kBlock; i += kLanes<A>) {
        __builtin_prefetch(from + kBlock * stride + slice * kBlock + i);
        store(place + i, load_part(from, slice * kBlock + i, columns) * scale);
      }
    }
  }
}

// At most 32 rows to panels of 32 rows, zeros behind the last.
template <typename T>
inline void pack_block(const T* from, int64_t stride, int64_t rows, int64_t columns,
                       Accumulate<T>* to) {
  using A = Accumulate<T>;
  pack_rows<T>(from, stride, rows, columns, A(1), {to, kBlock});
  for (int64_t slice = 0; rows < kBlock && slice * kBlock < columns; ++slice) {
    fill_zero<A>(to + slice * kSquare + rows * kBlock, (kBlock - rows) * kBlock);
  }
}

// A row of panels to numbers side by side, times `scale`.
template <typename T>
inline void unpack_row(const Panels<Accumulate<T>>& from, int64_t row, T* to, int64_t columns,
                       Accumulate<T> scale) {
  using A = Accumulate<T>;
  for (int64_t column = 0; column < columns; column += kLanes<A>) {
    const A* place = from.slice(column / kBlock) + row * kBlock + column % kBlock;
    store_part(to, column, columns, load(place) * scale);
  }
}

// Every square of panels of 32 rows transposed: [slices][32 rows][32] to [slices][32][32 rows].
template <typename A>
inline void transpose_block(const A* from, int64_t slices, A* to) {
  constexpr int n = kLanes<A>;
  for (int64_t slice = 0; slice < slices; ++slice, from += kSquare, to += kSquare) {
    for (int64_t i = 0; i < kBlock; i += n) {
      for (int64_t j = 0; j < kBlock; j += n) {
        Vec<A> square[n];
        for (int k = 0; k < n; ++k) square[k] = load(from + (i + k) * kBlock + j);
        transpose<A>(square);
        for (int k = 0; k < n; ++k) store(to + (j + k) * kBlock + i, square[k]);
      }
    }
  }
}

// c [rows][32] = or += a b [depth][32], where a[m][k] is at a[m * kRowStride + k * kStep].
template <typename A, int kRowStride, int kStep>
inline void multiply_panel(const A* a, const A* b, int64_t rows, int64_t depth, A* c, bool add) {
  for (int64_t column = 0; column < kBlock; column += kTileColumns<A>) {
    Product<A> product;
    product.a = a;
    product.b = b + column;
    product.c = c + column;
    product.rows = rows;
    product.depth = depth;
    product.b_step = product.c_row = kBlock;
    product.add = add;
    multiply<A, kRowStride, kStep>(product);
  }
}

// c [rows][32] = a b^T of panels a and of b, a block of 32 rows that has been transposed.
template <typename A>
inline void multiply_by_transposed(const Panels<A>& a, const A* b, int64_t rows, int64_t columns,
                                   A* c) {
  for (int64_t slice = 0; slice * kBlock < columns; ++slice) {
    multiply_panel<A, kBlock, 1>(a.slice(slice), b + slice * kSquare, rows,
                                 min(kBlock, columns - slice * kBlock), c, slice > 0);
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
