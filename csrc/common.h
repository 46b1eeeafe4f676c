// What the host side of the kernels shares, for every device: tensors in, tensors out, dtypes.
//
// Only PyTorch's stable ABI is used (torch >= 2.10), so that one library serves every later torch
// and every Python. Shapes and dtypes have been checked in fastinst/ops, with the better messages;
// what is checked here is for calls that come past it, by torch.ops, so that they end in an error
// rather than in memory that is not the tensor's.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace fastinst {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

// [B, N, H, D] memory seen as [B, H, N, D]: what attention returns, so that the heads of a token
// lie side by side for the projection that follows.
inline Tensor empty_heads(const Tensor& like, int64_t batch, int64_t heads, int64_t tokens,
                          int64_t dim) {
  return torch::stable::transpose(torch::stable::new_empty(like, {batch, tokens, heads, dim}), 1,
                                  2);
}

inline void expect_shape(const char* name, const Tensor& tensor, const Sizes& shape) {
  // Not ==, which torch 2.10 and 2.11 do not have here.
  STD_TORCH_CHECK(tensor.sizes().equals(shape), name,
                  " has another shape than the other tensors ask");
}

inline void expect_dtype(const char* name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " has another dtype than is asked");
}

// The tensor itself if its last dimension is contiguous, else a copy of it that is.
inline Tensor last_contiguous(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

// As a tensor's is_contiguous(memory_format=channels_last), and not contiguous.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != stride) return false;
    stride *= tensor.size(dim);
  }
  return true;
}

// The tensor itself in that dtype, or a copy.
inline Tensor to_dtype(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// The dtype that sums are kept in: double for double, else float.
inline ScalarType accumulate_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace fastinst
