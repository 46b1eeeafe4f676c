// Between images, [channels][pixels] with either of the two contiguous, and rows: one row of
// channels for each pixel, which is how the convolutions want to read and write them.

#pragma once

#include "../vec.h"

namespace fastinst {
namespace FASTINST_ISA {

constexpr int64_t kTransposeTile = 16;

// to[c][r] = from[r][c] for as many of both.
template <typename T>
inline __attribute__((always_inline)) void transpose_tile(const T* from, int64_t from_row,
                                                          int64_t from_column, int64_t rows,
                                                          int64_t columns, T* to, int64_t to_row) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) to[c * to_row + r] = from[r * from_row + c * from_column];
  }
}

// The same in tiles, whose cache lines stay in the cache until they are used up, and which are
// twice as fast where their size is a constant.
template <typename T>
inline void transpose(const T* from, int64_t from_row, int64_t from_column, int64_t rows,
                      int64_t columns, T* to, int64_t to_row) {
  constexpr int64_t kTile = kTransposeTile;
  for (int64_t row = 0; row < rows; row += kTile) {
    for (int64_t column = 0; column < columns; column += kTile) {
      const T* tile = from + row * from_row + column * from_column;
      T* to_tile = to + column * to_row + row;
      const int64_t height = rows - row, width = columns - column;
      if (height >= kTile && width >= kTile) {
        transpose_tile(tile, from_row, from_column, kTile, kTile, to_tile, to_row);
      } else {
        transpose_tile(tile, from_row, from_column, min(kTile, height), min(kTile, width), to_tile,
                       to_row);
      }
    }
  }
}

template <typename T>
inline void copy_rows(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                      int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memcpy(to + row * to_stride, from + row * from_stride, columns * sizeof(T));
  }
}

// Some channels of some pixels of an image to rows, and back; `image` points at the first of them.
template <typename T>
inline void image_to_rows(const T* image, int64_t channel_stride, int64_t pixel_stride,
                          int64_t channels, int64_t pixels, T* rows, int64_t row_stride) {
  if (channel_stride == 1) {
    copy_rows(image, pixel_stride, pixels, channels, rows, row_stride);
  } else {
    transpose(image, channel_stride, 1, channels, pixels, rows, row_stride);
  }
}

template <typename T>
inline void rows_to_image(const T* rows, int64_t row_stride, int64_t channels, int64_t pixels,
                          T* image, int64_t channel_stride, int64_t pixel_stride) {
  if (channel_stride == 1) {
    copy_rows(rows, row_stride, pixels, channels, image, pixel_stride);
  } else {
    transpose(rows, row_stride, 1, pixels, channels, image, channel_stride);
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
