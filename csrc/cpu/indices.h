// Tensors of indices whose values are what memory is read at.

#pragma once

#include <algorithm>

#include "../common.h"

namespace fastinst {

// [count] int64 with values in [0, end), contiguous.
inline Tensor expect_indices(const char* name, const Tensor& indices, int64_t count, int64_t end) {
  expect_dtype(name, indices, ScalarType::Long);
  expect_shape(name, indices, {count});
  const Tensor values = torch::stable::contiguous(indices);
  const int64_t* first = static_cast<const int64_t*>(values.data_ptr());
  STD_TORCH_CHECK(std::all_of(first, first + count,
                              [&](int64_t value) { return value >= 0 && value < end; }),
                  name, " must be in 0..", end - 1);
  return values;
}

}  // namespace fastinst
