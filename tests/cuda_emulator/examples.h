// Small kernels for test_cuda_emulator.py: correct ones, and one for each kind of bug.
#include "kernels/common.cuh"
#include "kernels/launch.cuh"
#include "kernels/tile.cuh"

#include <cuda_pipeline.h>

namespace fastinst {
namespace {

// One block of `threads` runs `body`, a lambda over device code.
template <typename Body>
__global__ void body_kernel(Body body) {
  body();
}

template <typename Body>
void run_block(int threads, Body body, size_t shared_bytes = 0) {
  launch(body_kernel<Body>, 1, threads, shared_bytes, nullptr, body);
}

template <typename T, typename Source>
void convert(const Source* input, T* output, int count) {
  run_block(32, [=] {
    for (int i = threadIdx.x; i < count; i += 32) output[i] = T(input[i]);
  });
}

template <int kThreads>
void block_sum(const float* input, float* output) {
  run_block(kThreads, [=] {
    __shared__ float scratch[kThreads / 32];
    output[threadIdx.x] = block_reduce<kThreads>(input[threadIdx.x], Sum(), scratch);
  });
}

void warp_operations(const int* input, int* output) {
  run_block(64, [=] {
    const int i = threadIdx.x, value = input[i];
    int* row = output + 8 * i;
    row[0] = __shfl_sync(kFullWarp, value, i + 5, 16);
    row[1] = __shfl_xor_sync(kFullWarp, value, 7);
    row[2] = __shfl_up_sync(kFullWarp, value, 3);
    row[3] = __shfl_down_sync(kFullWarp, value, 3, 8);
    row[4] = static_cast<int>(__ballot_sync(kFullWarp, value > 0));
    row[5] = __any_sync(kFullWarp, value > 1000);
    row[6] = __all_sync(kFullWarp, value < 1000);
    row[7] = __syncthreads_count(value > 0);
  });
}

void blocks_and_atomics(int* histogram, int* largest, float* sum, const float* input, int count) {
  const auto body = [=] {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    atomicAdd(&histogram[static_cast<int>(input[i]) % 8], 1);
    atomicMax(largest, static_cast<int>(input[i]));
    atomicAdd(sum, input[i]);
  };
  launch(body_kernel<decltype(body)>, ceil_div(count, 64), 64, 0, nullptr, body);
}

template <typename T, Order kOrderA, Order kOrderB>
void tile_product(const T* a, const T* b, Accumulate<T>* c) {
  constexpr int kRows = 32, kColumns = 48, kDepth = 64;
  const auto body = [=] {
    constexpr bool kRowA = kOrderA == Order::kRowMajor, kRowB = kOrderB == Order::kRowMajor;
    constexpr int kStrideA = (kRowA ? kDepth : kRows) + kRowPadding<T>;
    constexpr int kStrideB = (kRowB ? kColumns : kDepth) + kRowPadding<T>;
    T* a_shared = shared_memory<T>();
    T* b_shared = a_shared + (kRowA ? kRows : kDepth) * kStrideA;
    for (int i = threadIdx.x; i < kRows * kDepth; i += 32) {
      const int row = i / kDepth, k = i % kDepth;
      a_shared[kRowA ? row * kStrideA + k : k * kStrideA + row] = a[i];
    }
    for (int i = threadIdx.x; i < kDepth * kColumns; i += 32) {
      const int k = i / kColumns, column = i % kColumns;
      b_shared[kRowB ? k * kStrideB + column : column * kStrideB + k] = b[i];
    }
    __syncthreads();
    WarpTile<T, kRows, kColumns> tile;
    tile.clear();
    tile.template multiply_add<kDepth, kOrderA, kOrderB>(a_shared, kStrideA, b_shared, kStrideB);
    tile.apply([](Accumulate<T> value) { return 3 * value; });
    tile.store(c, kColumns);
  };
  run_block(32, body, (kRows * kDepth + kDepth * kColumns + 128 * 16) * sizeof(T));
}

void async_copy(const float* input, float* output, bool wait) {
  const auto body = [=] {
    float* tile = shared_memory<float>();
    __pipeline_memcpy_async(tile + 4 * threadIdx.x, input + 4 * threadIdx.x, 16);
    __pipeline_commit();
    if (wait) __pipeline_wait_prior(0);
    __syncthreads();
    output[threadIdx.x] = tile[threadIdx.x];
    __pipeline_wait_prior(0);
  };
  run_block(32, body, 512);
}

// Bugs. Each writes deterministic results on a naive emulation that runs threads in order.

void barrier_missed(float* output) {
  run_block(64, [=] {
    if (threadIdx.x < 40) __syncthreads();
    output[threadIdx.x] = 1;
  });
}

void barriers_differ(float* output) {
  run_block(64, [=] {
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    output[threadIdx.x] = 1;
  });
}

void lane_missing(float* output) {
  run_block(32, [=] {
    if (threadIdx.x == 31) return;
    output[threadIdx.x] = __shfl_xor_sync(kFullWarp, 1.0f, 1);
  });
}

void lane_outside_mask(float* output) {
  run_block(32, [=] {
    if (threadIdx.x < 8) output[threadIdx.x] = __shfl_sync(0xffu, 1.0f, 8);
  });
}

void missing_barrier(const float* input, float* output) {
  run_block(64, [=] {
    __shared__ float values[64];
    values[threadIdx.x] = input[threadIdx.x];
    output[threadIdx.x] = values[threadIdx.x / 2];
  });
}

void missing_barrier_at_loop_end(float* output) {
  run_block(64, [=] {
    __shared__ float value;
    for (int i = 0; i < 3; ++i) {
      if (threadIdx.x == 0) value = i;
      __syncthreads();
      output[64 * i + threadIdx.x] = value;
    }
  });
}

void missing_syncwarp(float* output) {
  run_block(32, [=] {
    __shared__ float values[32];
    values[threadIdx.x] = threadIdx.x;
    output[threadIdx.x] = values[threadIdx.x ^ 1];
  });
}

void uninitialised_shared(float* output, bool dynamic) {
  const auto body = [=] {
    __shared__ float values[32];
    float* memory = dynamic ? shared_memory<float>() : values;
    if (threadIdx.x > 0) memory[threadIdx.x] = 0;
    __syncthreads();
    output[threadIdx.x] = memory[threadIdx.x];
  };
  run_block(32, body, 128);
}

void out_of_bounds(float* output, int index, bool write) {
  run_block(32, [=] {
    if (write) output[index] = 1;
    if (!write) output[0] = output[index];
  });
}

void out_of_shared(float* output) {
  const auto body = [=] { shared_memory<float>()[8 * 32 + threadIdx.x] = output[0]; };
  run_block(32, body, 1024);
}

void misaligned(float* output) {
  run_block(1, [=] { Packed<float>::load(output + 1).store(output); });
}

void depends_on_fragment_layout(const __half* input, float* output) {
  run_block(32, [=] {
    using namespace nvcuda;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fragment;
    wmma::load_matrix_sync(fragment, input, 16);
    for (int i = 0; i < 8; ++i) output[8 * threadIdx.x + i] = fragment.x[i];
  });
}

void unaligned_fragment(const __half* input) {
  run_block(32, [=] {
    using namespace nvcuda;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fragment;
    wmma::load_matrix_sync(fragment, input + 8, 16);
  });
}

void launch_with(int threads, int shared_bytes) {
  run_block(threads, [] {}, shared_bytes);
}

}  // namespace
}  // namespace fastinst

EMULATED(half_from_float, fastinst::convert<__half, float>)
EMULATED(half_from_double, fastinst::convert<__half, double>)
EMULATED(float_from_half, fastinst::convert<float, __half>)
EMULATED(bfloat16_from_float, fastinst::convert<__nv_bfloat16, float>)
EMULATED(bfloat16_from_double, fastinst::convert<__nv_bfloat16, double>)
EMULATED(float_from_bfloat16, fastinst::convert<float, __nv_bfloat16>)
EMULATED(block_sum, fastinst::block_sum<192>)
EMULATED(warp_operations, fastinst::warp_operations)
EMULATED(blocks_and_atomics, fastinst::blocks_and_atomics)
EMULATED(async_copy, fastinst::async_copy)
EMULATED(barrier_missed, fastinst::barrier_missed)
EMULATED(barriers_differ, fastinst::barriers_differ)
EMULATED(lane_missing, fastinst::lane_missing)
EMULATED(lane_outside_mask, fastinst::lane_outside_mask)
EMULATED(missing_barrier, fastinst::missing_barrier)
EMULATED(missing_barrier_at_loop_end, fastinst::missing_barrier_at_loop_end)
EMULATED(missing_syncwarp, fastinst::missing_syncwarp)
EMULATED(uninitialised_shared, fastinst::uninitialised_shared)
EMULATED(out_of_bounds, fastinst::out_of_bounds)
EMULATED(out_of_shared, fastinst::out_of_shared)
EMULATED(misaligned, fastinst::misaligned)
EMULATED(depends_on_fragment_layout, fastinst::depends_on_fragment_layout)
EMULATED(unaligned_fragment, fastinst::unaligned_fragment)
EMULATED(launch_with, fastinst::launch_with)
