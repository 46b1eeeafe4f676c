// Points chosen by importance, on the CPU: the parameters, and what each instruction set provides.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {
namespace uncertain_points {

template <typename T>
struct Params {
  const T* logits;  // [P, height, width]
  int height, width;
  const int64_t* seeds;                // [P]
  int points, candidates, important;  // important <= points, candidates
  float* chosen;                       // [P, points, 2]
};

}  // namespace uncertain_points

// Maps [begin, end) of the P.
FASTINST_DECLARE(template <typename T> void choose_points(
    const uncertain_points::Params<T>& params, int64_t begin, int64_t end))

}  // namespace fastinst
