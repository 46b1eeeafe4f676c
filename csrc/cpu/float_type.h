// The element type of a tensor, for kernels that choose by it.

#pragma once

#include "../common.h"
#include "kernels/float_type.h"

namespace fastinst {

inline FloatType float_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return FloatType::kFloat;
    case ScalarType::Double: return FloatType::kDouble;
    case ScalarType::Half: return FloatType::kHalf;
    case ScalarType::BFloat16: return FloatType::kBFloat16;
    default: STD_TORCH_CHECK(false, "float64, float32, float16 or bfloat16 expected");
  }
}

}  // namespace fastinst
