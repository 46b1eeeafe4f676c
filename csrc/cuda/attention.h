// What the hosts of the two attentions share: bringing tensors into the kernels' form.

#pragma once

#include <tuple>

#include "../kernels/attention.cuh"
#include "device.h"

namespace fastinst {

// The tensor with its last dimension filled up with zeros to a multiple of 8, and every row of that
// at a multiple of 16 bytes: itself if it is so, else a copy.
Tensor in_vectors(const Tensor& tensor);

// [B, heads, tokens, channels] as the kernels see it.
template <typename T, typename Element = const T>
Heads<Element> heads_of(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), static_cast<int>(tensor.stride(2)),
          static_cast<int>(tensor.size(2))};
}

// softmax(query key^T / sqrt(channels)) value where `attend` lets it, [B, heads, N, channels].
Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const Attend& attend, cudaStream_t stream);

// The gradients of query, key and value.
std::tuple<Tensor, Tensor, Tensor> attention_gradient(const Tensor& grad, const Tensor& output,
                                                      const Tensor& query, const Tensor& key,
                                                      const Tensor& value, const Attend& attend,
                                                      cudaStream_t stream);

}  // namespace fastinst
