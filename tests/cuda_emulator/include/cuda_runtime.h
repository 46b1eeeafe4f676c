// Stands in for CUDA's header of this name; g++ gets it by -include, as nvcc does by itself.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "../emulator.h"
#include "vector_types.h"

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __restrict__ __restrict
// One copy for the block's fibers, which share a system thread. Being thread-local puts all of them
// into one segment that the emulator can fill with garbage.
#define __shared__ static thread_local
#define __constant__ static

// The emulator sets these on every switch of threads.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#include "device_functions.h"
#include "device_atomic_functions.h"
#include "math_functions.h"
#include "cuda_runtime_api.h"
