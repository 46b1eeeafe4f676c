// Every kernel of mask read-out, compiled for the compiler's report and for each architecture.
#include "read_out_masks.cuh"

namespace fastinst {
namespace {

template __global__ void read_out_kernel(ReadOutParams<double>);
template __global__ void read_out_kernel(ReadOutParams<float>);
template __global__ void read_out_kernel(ReadOutParams<__half>);
template __global__ void read_out_kernel(ReadOutParams<__nv_bfloat16>);

template __global__ void add_up_kernel(AddUpParams<double>);
template __global__ void add_up_kernel(AddUpParams<float>);

}  // namespace
}  // namespace fastinst
