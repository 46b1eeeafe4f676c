// Query selection on the CPU: the parameters, and what each instruction set provides.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {
namespace select_queries {

// What a rank is compared by: its bits, which as a number are in the order of what they stand for.
template <typename T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = int32_t;
};
template <>
struct KeyOf<double> {
  using type = int64_t;
};
template <typename T>
using Key = typename KeyOf<T>::type;

// Vectors may run over the end of an array by less than this many elements.
constexpr int kPadding = 16;

template <typename T>
struct Params {
  const T* logits;  // [B, classes + 1, height * width], of which the last class is no-object
  int64_t image_stride, class_stride, pixel_stride;
  int classes, height, width;
  bool local_maximum_first;

  // For each image the best foreground class of each pixel, and its probability; before and after
  // its pixels lie `margin` of class -1, enough for any neighbour.
  int margin;
  T* probability;  // [B, margin + height * width + margin]
  Key<T>* best;

  FASTINST_INLINE int64_t map(int64_t image) const {
    return image * (2 * margin + int64_t(height) * width) + margin;
  }
};

}  // namespace select_queries

// Pixels [begin, end) of an image; `scratch` holds (classes + 1) * kPadding.
FASTINST_DECLARE(template <typename T> void classify_pixels(
    const select_queries::Params<T>& params, int64_t image, int64_t begin, int64_t end,
    T* scratch))

// The indices of the `count` pixels of highest rank, ascending; `keys` holds height * width
// + kPadding.
FASTINST_DECLARE(template <typename T> void choose_pixels(
    const select_queries::Params<T>& params, int64_t image, int count,
    select_queries::Key<T>* keys, int64_t* indices))

}  // namespace fastinst
