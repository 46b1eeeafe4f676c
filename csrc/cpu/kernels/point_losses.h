// Losses of masks at points, on the CPU: the parameters, and what each instruction set provides.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {
namespace point_losses {

template <typename T>
struct Params {
  const T* logits;  // [P, height, width]
  int height, width;
  const uint32_t* masks;  // [M, mask_height, words]
  int mask_height, words;
  const int64_t* mask_index;  // [P]
  const T* points;            // [P or 1, count, 2]
  int64_t points_stride;      // from pair to pair; 0 if they share their points
  int count;

  // Of the losses, [P]; not used by the gradient.
  T *bce, *dice;
  // Of the gradient, [P], [P] and [P, height, width].
  const T *grad_bce, *grad_dice;
  T* grad_logits;
};

}  // namespace point_losses

// Pairs [begin, end) of the P.
FASTINST_DECLARE(template <typename T> void compare_pairs(
    const point_losses::Params<T>& params, int64_t begin, int64_t end))
FASTINST_DECLARE(template <typename T> void differentiate_pairs(
    const point_losses::Params<T>& params, int64_t begin, int64_t end))

}  // namespace fastinst
