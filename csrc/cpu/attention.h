// Attention on the CPU, with a mask or without: what the operators' host sides call.

#pragma once

#include <tuple>

#include "../common.h"

namespace fastinst {

// query [B, H, N, D], key and value [B, H, M, D]; bits as in kernels/attention.h, or none.
Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const uint32_t* bits);

// Gradients of query, key and value.
std::tuple<Tensor, Tensor, Tensor> attention_gradients(const Tensor& grad, const Tensor& output,
                                                       const Tensor& query, const Tensor& key,
                                                       const Tensor& value, const uint32_t* bits);

}  // namespace fastinst
