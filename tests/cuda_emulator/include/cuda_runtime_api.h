// The part of CUDA's host side that launchers use. Streams do nothing: everything is synchronous.
#pragma once

#include <stdexcept>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    default: return "invalid configuration argument";
  }
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
// A small device of compute capability 9.0.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
  }
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* target, int byte, size_t bytes, cudaStream_t = nullptr) {
  return std::memset(target, byte, bytes), cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
namespace cuda_emulator {
inline const void* kernel_with_large_shared_memory = nullptr;
inline int large_shared_bytes = 48 << 10;
}  // namespace cuda_emulator

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > 227 << 10) return cudaErrorInvalidValue;
  cuda_emulator::kernel_with_large_shared_memory = kernel;
  cuda_emulator::large_shared_bytes = bytes;
  return cudaSuccess;
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const void* address = reinterpret_cast<const void*>(kernel);
  const bool large = address == cuda_emulator::kernel_with_large_shared_memory;
  const size_t shared_limit = large ? cuda_emulator::large_shared_bytes : 48 << 10;
  if (block.x * block.y * block.z == 0 || block.x * block.y * block.z > 1024 || block.z > 64 ||
      grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (config->dynamicSmemBytes > shared_limit) return cudaErrorInvalidValue;
  const cuda_emulator::Launch launch{{grid.x, grid.y, grid.z},
                                     {block.x, block.y, block.z},
                                     config->dynamicSmemBytes,
                                     address};
  cuda_emulator::run(launch, [&] { kernel(arguments...); });
  return cudaSuccess;
}
