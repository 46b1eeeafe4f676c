// Mask read-out on the CPU: the parameters, and what each instruction set provides.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {
namespace read_out {

// How the sum of two products a b + c d is rounded.
enum class Rounding {
  kEach,         // both products, then the sum
  kFirstFused,   // fma(a, b, round(c d))
  kSecondFused,  // fma(c, d, round(a b))
};

// What one output row or column of one resize reads.
template <typename T>
struct Pair {
  int first, second;
  T first_weight, second_weight;
};

// What one row of the masks reads of the logits, through both resizes.
template <typename T>
struct RowTaps {
  int count;
  int index[4];
  T weight[4];
};

// One of the two resizes, as PyTorch computes it.
template <typename T>
struct Resize {
  const Pair<T>* rows;
  const Pair<T>* columns;
  bool four_products;  // weights multiplied first; else columns, then rows
};

template <typename T>
struct Params {
  const T* logits;  // [N, height, width]
  int height, width;
  int output_height, output_width;
  Resize<T> to_padded, to_output;
  Rounding rounding;

  const RowTaps<T>* row_taps;  // [output_height]
  int column_taps;             // per column, unused ones with a weight of 0
  const int* column_index;     // [column_taps, output_width]
  const T* column_weight;
  // For each column of the logits, where those columns of the masks begin and end that read it
  // or, for the begin, one to its right, and for the end, one to its left.
  const int* reach_begin;
  const int* reach_end;

  bool packed;
  void* masks;  // [N, output_height, output_width] of bytes or ceil(output_width / 32) words
  int words;    // in a row
};

// What a band of rows adds to the description of its mask.
struct Band {
  double inside;  // sum of the sigmoids inside the mask
  int64_t area;
  int left, top, right, bottom;  // right and bottom exclusive; right is 0 if the band is empty
};

// Vectors and words may run over the end of a row by less than this.
constexpr int kPadding = 64;

// What is known of a row of the logits.
template <typename T>
struct SourceRow {
  T magnitude;     // the largest absolute value; infinity if one is not finite
  int begin, end;  // columns outside of which all are finite and none is positive
};

// Memory for one band. `stride` is at least kPadding more than the width of the masks.
template <typename T>
struct Scratch {
  int64_t stride;
  SourceRow<T>* sources;  // of those rows of the logits that a band reads
  T* resized;             // [the same, stride], resized along x
  T* values;              // [stride]
  uint8_t* inside;        // [stride], 0 or 1
  uint8_t* columns;       // [stride], 1 where a row of the band has one
};

}  // namespace read_out

FASTINST_DECLARE(template <typename T> void read_out_band(
    const read_out::Params<T>& params, int64_t mask, int row_begin, int row_end,
    const read_out::Scratch<T>& scratch, read_out::Band* band))

// One logit of a mask exactly as two calls of F.interpolate give it.
FASTINST_DECLARE(template <typename T> T interpolated_twice(const read_out::Params<T>& params,
                                                            const T* logits, int row, int column))

}  // namespace fastinst
