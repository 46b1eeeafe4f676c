// Every kernel of attention_backward.cuh, to be compiled and measured without PyTorch.
#include "attention_backward.cuh"

namespace fastinst {

#define INSTANTIATE(T)                                                                           \
  template __global__ void query_statistics_kernel<T>(AttentionGradientParams<T>);               \
  template __global__ void attention_gradient_kernel<T, true>(AttentionGradientParams<T>,        \
                                                              RowGradients<T>);                  \
  template __global__ void attention_gradient_kernel<T, false>(AttentionGradientParams<T>,       \
                                                               RowGradients<T>);                 \
  template __global__ void sum_chunks_kernel<T>(HeadShape, Heads<T>, const Accumulate<T>*, int);

INSTANTIATE(double)
INSTANTIATE(float)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace fastinst
