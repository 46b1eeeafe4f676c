// Every kernel of attention_mask.cuh, to be compiled and measured without PyTorch.
#include "attention_mask.cuh"

namespace fastinst {

template __global__ void attention_mask_kernel<double>(AttentionMaskParams<double>);
template __global__ void attention_mask_kernel<float>(AttentionMaskParams<float>);
template __global__ void attention_mask_kernel<__half>(AttentionMaskParams<__half>);
template __global__ void attention_mask_kernel<__nv_bfloat16>(AttentionMaskParams<__nv_bfloat16>);

}  // namespace fastinst
