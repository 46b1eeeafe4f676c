// Every kernel of mask sampling, compiled for the compiler's report and for each architecture.
#include "sample_masks.cuh"

namespace fastinst {
namespace {

template __global__ void sample_masks_kernel(SampleMasksParams<double>);
template __global__ void sample_masks_kernel(SampleMasksParams<float>);

}  // namespace
}  // namespace fastinst
