// What every kernel file needs: conversions between storage and arithmetic types, 16-byte vectors,
// reductions over a warp and a block. Kernels compute in Accumulate<T>: double for double, float
// for everything else. NVRTC compiles this file too, so it includes no host header.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifndef __CUDACC_RTC__
#include <cstdint>
#endif

namespace fastinst {

#ifdef __CUDACC_RTC__
using int64_t = long long;
#endif

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

template <typename T>
struct AccumulateOf {
  using Type = float;
};
template <>
struct AccumulateOf<double> {
  using Type = double;
};
template <typename T>
using Accumulate = typename AccumulateOf<T>::Type;

template <typename Integer>
__host__ __device__ constexpr Integer ceil_div(Integer numerator, Integer denominator) {
  return (numerator + denominator - 1) / denominator;
}

template <typename Integer>
__host__ __device__ constexpr Integer round_up(Integer value, Integer multiple) {
  return ceil_div(value, multiple) * multiple;
}

// To the type that sums, exponentials and comparisons are done in.
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
struct StorageOf;
template <>
struct StorageOf<float> {
  static __device__ __forceinline__ float from(float value) { return value; }
};
template <>
struct StorageOf<double> {
  static __device__ __forceinline__ double from(double value) { return value; }
};
template <>
struct StorageOf<__half> {
  static __device__ __forceinline__ __half from(float value) { return __float2half_rn(value); }
};
template <>
struct StorageOf<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 from(float value) {
    return __float2bfloat16_rn(value);
  }
};

// Back to the type that memory holds, to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T narrow(Accumulate<T> value) {
  return StorageOf<T>::from(value);
}

template <typename T>
__device__ __forceinline__ T infinity();
template <>
__device__ __forceinline__ float infinity<float>() {
  return __int_as_float(0x7f800000);
}
template <>
__device__ __forceinline__ double infinity<double>() {
  return __longlong_as_double(0x7ff0000000000000ll);
}

// 16 bytes of T, moved by one instruction. Both addresses must be multiples of 16.
template <typename T>
struct alignas(16) Packed {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];

  __device__ __forceinline__ T& operator[](int index) { return values[index]; }
  __device__ __forceinline__ const T& operator[](int index) const { return values[index]; }

  static __device__ __forceinline__ Packed load(const T* source) {
    return *reinterpret_cast<const Packed*>(source);
  }
  // Through the read-only cache: only for memory that no thread writes while the kernel runs.
  static __device__ __forceinline__ Packed load_constant(const T* source) {
    const int4 bits = __ldg(reinterpret_cast<const int4*>(source));
    Packed packed;
    *reinterpret_cast<int4*>(packed.values) = bits;
    return packed;
  }
  __device__ __forceinline__ void store(T* target) const {
    *reinterpret_cast<Packed*>(target) = *this;
  }
};

// The block's dynamic shared memory, aligned to 128 bytes.
template <typename T>
__device__ __forceinline__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char shared_bytes[];
#else
  unsigned char* shared_bytes = cuda_emulator::dynamic_shared_memory();
#endif
  return reinterpret_cast<T*>(shared_bytes);
}

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T left, T right) const {
    return left + right;
  }
};

struct Maximum {
  template <typename T>
  __device__ __forceinline__ T operator()(T left, T right) const {
    return left > right ? left : right;
  }
};

struct Minimum {
  template <typename T>
  __device__ __forceinline__ T operator()(T left, T right) const {
    return left < right ? left : right;
  }
};

// Over groups of kLanes neighbouring lanes; every lane gets its group's result. All 32 lanes call.
template <int kLanes = kWarpSize, typename T, typename Operation>
__device__ __forceinline__ T warp_reduce(T value, Operation operation) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value = operation(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

// Over the block's kThreads (a multiple of 32); every thread gets the result, the same on every
// run. `scratch` is shared memory for kThreads / 32 values, free again when the call returns.
template <int kThreads, typename T, typename Operation>
__device__ __forceinline__ T block_reduce(T value, Operation operation, T* scratch) {
  constexpr int kWarps = kThreads / kWarpSize;
  value = warp_reduce(value, operation);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) value = operation(value, scratch[warp]);
  __syncthreads();
  return value;
}

}  // namespace fastinst
