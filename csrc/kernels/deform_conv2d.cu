// Every kernel of deformable convolution for every dtype, to see what they compile to.
#include "deform_conv2d_backward_data.cuh"
#include "deform_conv2d_backward_weight.cuh"
#include "deform_conv2d_forward.cuh"

namespace fastinst {

#define FASTINST_INSTANTIATE_FOR(T, kWhole)                                                     \
  template __global__ void deform_forward_kernel<T, kWhole>(DeformForwardParams<T>);            \
  template __global__ void deform_backward_data_kernel<T, kWhole>(DeformBackwardDataParams<T>); \
  template __global__ void deform_backward_weight_kernel<T, kWhole>(DeformBackwardWeightParams<T>);

#define FASTINST_INSTANTIATE(T)                                                 \
  FASTINST_INSTANTIATE_FOR(T, true)                                             \
  FASTINST_INSTANTIATE_FOR(T, false)                                            \
  template __global__ void deform_finish_kernel<T>(DeformForwardParams<T>, int); \
  template __global__ void deform_finish_weight_kernel<T>(DeformBackwardWeightParams<T>, int);

FASTINST_INSTANTIATE(double)
FASTINST_INSTANTIATE(float)
FASTINST_INSTANTIATE(__half)
FASTINST_INSTANTIATE(__nv_bfloat16)

}  // namespace fastinst
