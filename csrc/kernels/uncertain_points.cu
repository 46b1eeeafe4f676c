// Every kernel of point selection, compiled for the compiler's report and for each architecture.
#include "uncertain_points.cuh"

namespace fastinst {
namespace {

template __global__ void uncertain_points_kernel(UncertainPointsParams<double>);
template __global__ void uncertain_points_kernel(UncertainPointsParams<float>);
template __global__ void uncertain_points_kernel(UncertainPointsParams<__half>);
template __global__ void uncertain_points_kernel(UncertainPointsParams<__nv_bfloat16>);

}  // namespace
}  // namespace fastinst
