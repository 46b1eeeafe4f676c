// Every kernel of attention_forward.cuh, to be compiled and measured without PyTorch.
#include "attention_forward.cuh"

namespace fastinst {

#define INSTANTIATE(T)                                              \
  template __global__ void attention_kernel<T>(AttentionParams<T>); \
  template __global__ void merge_chunks_kernel<T>(AttentionParams<T>);

INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace fastinst
