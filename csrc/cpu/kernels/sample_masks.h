// Samples of packed masks on the CPU: the parameters, and what each instruction set provides.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {
namespace sample_masks {

template <typename T>
struct Params {
  const uint32_t* masks;  // [M, height, words]
  int height, words;
  const T* points;        // [G, count, 2]
  const int64_t* groups;  // [M]
  int count;
  T* samples;  // [M, count]
};

}  // namespace sample_masks

// Masks [begin, end) of the M.
FASTINST_DECLARE(template <typename T> void sample_rows(
    const sample_masks::Params<T>& params, int64_t begin, int64_t end))

}  // namespace fastinst
