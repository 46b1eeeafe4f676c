// What the CUDA hosts share, between PyTorch's tensors and the launchers in csrc/kernels: the
// current stream and device, pointers of the kernels' types, one switch over dtypes.
//
// An operator's host reads
//
//     const OnDevice device(input);                  // the device current, its stream known
//     dispatch(input.scalar_type(), [&](auto type) {
//       using T = typename decltype(type)::Type;     // double, float, __half or __nv_bfloat16
//       launch_something<T>({data<T>(input), ...}, device.stream);
//     });

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/stable/accelerator.h>

#include "../common.h"
#include "../kernels/launch.cuh"

// Weak, as a CPU build of torch has none: one library then loads in both, and runs on the CPU
// there.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace fastinst {

// Makes the tensor's device the current one for as long as this lives, and knows PyTorch's current
// stream there, which the kernels must run on: other streams have neither its order nor its
// capture.
struct OnDevice {
  explicit OnDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "fastinst: this build of torch has no CUDA streams");
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
};

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls function(TypeTag<T>()) with the kernels' type for a dtype.
template <typename Function>
void dispatch(ScalarType dtype, Function&& function) {
  switch (dtype) {
    case ScalarType::Double: return function(TypeTag<double>());
    case ScalarType::Float: return function(TypeTag<float>());
    case ScalarType::Half: return function(TypeTag<__half>());
    case ScalarType::BFloat16: return function(TypeTag<__nv_bfloat16>());
    default: STD_TORCH_CHECK(false, "fastinst: no CUDA kernel for dtype ", toString(dtype));
  }
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The tensor itself if its memory begins at a multiple of 16 bytes, as vector loads want it, else a
// copy. Only a view into the middle of other memory does not.
inline Tensor aligned(const Tensor& tensor) {
  const bool misaligned = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 != 0;
  return misaligned ? torch::stable::clone(tensor) : tensor;
}

// bfloat16 is multiplied by tensor cores from sm_80 on; hosts compute in float below.
inline bool multiplies_bfloat16() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8;
}

}  // namespace fastinst
