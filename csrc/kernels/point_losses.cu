// Every kernel of the point losses, compiled for the compiler's report and for each architecture.
#include "point_losses.cuh"

namespace fastinst {
namespace {

template __global__ void point_losses_kernel(PointLossesForwardParams<double>);
template __global__ void point_losses_kernel(PointLossesForwardParams<float>);
template __global__ void point_losses_kernel(PointLossesForwardParams<__half>);
template __global__ void point_losses_kernel(PointLossesForwardParams<__nv_bfloat16>);

template __global__ void point_losses_backward_kernel(PointLossesBackwardParams<double>);
template __global__ void point_losses_backward_kernel(PointLossesBackwardParams<float>);
template __global__ void point_losses_backward_kernel(PointLossesBackwardParams<__half>);
template __global__ void point_losses_backward_kernel(PointLossesBackwardParams<__nv_bfloat16>);

}  // namespace
}  // namespace fastinst
