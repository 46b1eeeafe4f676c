// How host code starts a kernel. Excluded from NVRTC, which compiles device code only.
#pragma once

#ifndef __CUDACC_RTC__

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastinst {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fastinst, CUDA: ") + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// The most shared memory a block may ask for: 96 KB on sm_70, 64 on 75, 163 on 80, 99 on 86 and
// 227 on 90.
inline int maximum_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// Starts `kernel` on `stream`; an empty grid starts nothing. Throws if the launch is refused.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  // Of the 48 KB that every kernel may have, its static arrays take a part.
  constexpr size_t kSharedBytesWithoutAsking = 32 << 10;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kSharedBytesWithoutAsking) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace fastinst

#endif  // __CUDACC_RTC__
