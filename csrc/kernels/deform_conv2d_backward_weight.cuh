// The gradient of a deformable convolution's weights:
//
//     grad_weight[o, tap, channel] =
//         sum over pixels of grad[pixel, o] * column[pixel, tap, channel]
//
// grad is [B, h, w, C_out]; columns are gathered again (deform_sampling.cuh), as reading them back
// would cost more than interpolating them.
//
// A block owns 256 outputs x 64 channels of one tap, of one weight and offset group. It walks the
// pixels in steps of 64 / sizeof(T): each thread gathers 16 bytes of a column and copies four
// vectors of grad, then each of the 8 warps multiplies 64 outputs with 32 channels. The pixels are
// split between blocks until they fill the GPU; these leave sums in a workspace, and a second
// kernel adds them up in a fixed order, so that the result is the same on every run.
#pragma once

#include "deform_sampling.cuh"
#include "launch.cuh"
#include "tile.cuh"

namespace fastinst {

template <typename T>
struct DeformBackwardWeightParams {
  Sampling<T> sampling;
  const T* grad;
  const T* input;
  Accumulate<T>* workspace;   // deform_backward_weight_workspace(geometry) of them
  MixedArray<T> grad_weight;  // [C_out, C / groups, kh, kw]
};

// Sums of one split: [weight groups, outputs, taps, channels], outputs and each run's channels
// in whole tiles of a warp.
struct DeformWeightSums {
  static constexpr int kTileRows = 64, kTileColumns = 32;
  int rows, run, columns;
  int64_t size;

  __host__ __device__ explicit DeformWeightSums(const DeformGeometry& geometry)
      : rows(round_up(geometry.group_outputs, kTileRows)),
        run(round_up(geometry.run, kTileColumns)),
        columns(geometry.group_channels / geometry.run * run),
        size(int64_t(geometry.weight_groups) * rows * geometry.taps * columns) {}
};

template <typename T>
struct DeformBackwardWeightTile {
  static constexpr int kThreads = 256;
  static constexpr int kOutputs = 256, kChannels = 64, kDepth = 64 / sizeof(T);
  static constexpr int kWarpOutputs = DeformWeightSums::kTileRows;
  static constexpr int kWarpChannels = DeformWeightSums::kTileColumns;
  static constexpr int kWarpColumns = kChannels / kWarpChannels;
  static constexpr int kGathers = kChannels / ColumnGather<T>::kChannels;  // to a column
  static constexpr int kGradStride = kOutputs + kRowPadding<T>;
  static constexpr int kColumnStride = kChannels + kRowPadding<T>;
  static_assert(kDepth * kGathers * ColumnGather<T>::kLanes == kThreads, "one vector a thread");

  T grad[2][kDepth][kGradStride];
  T columns[2][kDepth][kColumnStride];
  GatherPlan<T, kDepth> plans[2];
};

// Before sm_80, copies to shared memory go through registers, and two blocks have too few of them.
#if __CUDA_ARCH__ + 0 >= 800
constexpr int kBackwardWeightBlocks = 2;
#else
constexpr int kBackwardWeightBlocks = 1;
#endif

// kWhole: outputs of a group and channels of a run are whole vectors.
template <typename T, bool kWhole>
__global__ void __launch_bounds__(DeformBackwardWeightTile<T>::kThreads,
                                  kWhole && sizeof(T) == 2 ? kBackwardWeightBlocks : 1)
    deform_backward_weight_kernel(const DeformBackwardWeightParams<T> params) {
  using Tile = DeformBackwardWeightTile<T>;
  constexpr int kLanes = ColumnGather<T>::kLanes, kVector = Packed<T>::kSize;
  const Sampling<T>& sampling = params.sampling;
  const DeformGeometry& geometry = sampling.geometry;
  Tile& tile = *shared_memory<Tile>();

  // The block: (weight group, run, channel tile, output tile), tap, split.
  const int output_tiles = ceil_div(geometry.group_outputs, Tile::kOutputs);
  const int channel_tiles = ceil_div(geometry.run, Tile::kChannels);
  const int first_output = blockIdx.x % output_tiles * Tile::kOutputs;  // in its group
  const int chunk = blockIdx.x / output_tiles % channel_tiles * Tile::kChannels;
  const int first_channel = blockIdx.x / output_tiles / channel_tiles * geometry.run;
  const int group = first_channel / geometry.group_channels, tap = blockIdx.y;
  const int steps = ceil_div(geometry.pixels, Tile::kDepth);
  const int begin = int64_t(steps) * blockIdx.z / gridDim.z;
  const int end = int64_t(steps) * (blockIdx.z + 1) / gridDim.z;

  // The thread: a column of the step, and a vector in it; and of a plan, a column and a corner.
  const int row = threadIdx.x / (kLanes * Tile::kGathers);
  const int lane_channel = threadIdx.x % (kLanes * Tile::kGathers) * kVector;
  const int plan_row = threadIdx.x / 4, plan_corner = threadIdx.x % 4;

  using Fetched = typename Sampling<T>::Fetched;
  const auto look_up = [&](int step) {
    return sampling.fetch(OutputPixel::at(geometry, step * Tile::kDepth + plan_row), tap,
                          first_channel / geometry.offset_channels);
  };
  const auto make_plan = [&](int plan, int step, const Fetched& looked_up) {
    tile.plans[plan].set(sampling, plan_row, plan_corner,
                         OutputPixel::at(geometry, step * Tile::kDepth + plan_row), tap, looked_up);
  };
  ColumnGather<T> gather;
  const auto fetch = [&](int buffer, int step) {
    gather.template load<kWhole>(tile.plans[buffer].pixels[row],
                                 params.input + first_channel + chunk + lane_channel,
                                 geometry.channels, geometry.run - chunk - lane_channel);
    constexpr int kVectors = Tile::kOutputs / kVector, kRows = Tile::kThreads / kVectors;
    const int grad_row = threadIdx.x / kVectors, grad_vector = threadIdx.x % kVectors * kVector;
    const int first_pixel = step * Tile::kDepth + grad_row;
    const T* grad = params.grad + int64_t(first_pixel) * geometry.out_channels +
                    group * geometry.group_outputs + first_output + grad_vector;
#pragma unroll
    for (int i = 0; i < Tile::kDepth; i += kRows) {
      const bool exists = first_pixel + i < geometry.pixels;
      copy_channels<kWhole>(tile.grad[buffer][i + grad_row] + grad_vector,
                            grad + i * geometry.out_channels,
                            exists ? geometry.group_outputs - first_output - grad_vector : 0);
    }
    __pipeline_commit();
  };
  const auto finish_fetch = [&](int buffer) {
    gather.blend(tile.plans[buffer].weights[row]).store(tile.columns[buffer][row] + lane_channel);
    __pipeline_wait_prior(0);
  };

  const int warp = threadIdx.x / kWarpSize;
  const int warp_output = warp / Tile::kWarpColumns * Tile::kWarpOutputs;
  const int warp_channel = warp % Tile::kWarpColumns * Tile::kWarpChannels;
  const bool warp_has_sums = first_output + warp_output < geometry.group_outputs &&
                             chunk + warp_channel < geometry.run;
  WarpTile<T, Tile::kWarpOutputs, Tile::kWarpChannels> sums;
  sums.clear();

  // The plan of a step is made while the step two before it is multiplied.
  const bool plans = plan_row < Tile::kDepth;
  if (plans) make_plan(0, begin, look_up(begin));
  __syncthreads();
  fetch(0, begin);
  if (plans) make_plan(1, begin + 1, look_up(begin + 1));
  finish_fetch(0);
  __syncthreads();
#pragma unroll 1
  for (int step = begin, buffer = 0; step < end; ++step, buffer = 1 - buffer) {
    Fetched looked_up = {};
    const bool has_next = step + 1 < end, makes_plan = plans && step + 2 < end;
    if (makes_plan) looked_up = look_up(step + 2);
    if (has_next) fetch(1 - buffer, step + 1);
    if (warp_has_sums) {
      sums.template multiply_add<Tile::kDepth, Order::kColumnMajor, Order::kRowMajor>(
          &tile.grad[buffer][0][warp_output], Tile::kGradStride,
          &tile.columns[buffer][0][warp_channel], Tile::kColumnStride);
    }
    if (has_next) finish_fetch(1 - buffer);
    if (makes_plan) make_plan(buffer, step + 2, looked_up);
    __syncthreads();
  }
  if (warp_has_sums) {
    const DeformWeightSums layout(geometry);
    const int64_t sum_row = int64_t(group) * layout.rows + first_output + warp_output;
    const int run = first_channel % geometry.group_channels / geometry.run;
    sums.store(params.workspace + blockIdx.z * layout.size +
                   (sum_row * geometry.taps + tap) * layout.columns + run * layout.run + chunk +
                   warp_channel,
               geometry.taps * layout.columns);
  }
}

// One thread for each weight, in the order of the sums.
constexpr int kWeightFinishThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kWeightFinishThreads)
    deform_finish_weight_kernel(const DeformBackwardWeightParams<T> params, int splits) {
  const DeformGeometry& geometry = params.sampling.geometry;
  const DeformWeightSums layout(geometry);
  const int index = blockIdx.x * kWeightFinishThreads + threadIdx.x;
  if (index >= geometry.out_channels * geometry.taps * geometry.group_channels) return;
  const int channel = index % geometry.group_channels;
  const int tap = index / geometry.group_channels % geometry.taps;
  const int output = index / geometry.group_channels / geometry.taps;
  const int64_t sum_row = int64_t(output / geometry.group_outputs) * layout.rows +
                          output % geometry.group_outputs;
  const int column = channel / geometry.run * layout.run + channel % geometry.run;
  const Accumulate<T>* sums =
      params.workspace + (sum_row * geometry.taps + tap) * layout.columns + column;
  Accumulate<T> value = sums[0];
#pragma unroll 4
  for (int split = 1; split < splits; ++split) value += sums[split * layout.size];
  params.grad_weight.store(
      (int64_t(output) * geometry.group_channels + channel) * geometry.taps + tap, value);
}

#ifndef __CUDACC_RTC__

template <typename T>
dim3 deform_backward_weight_grid(const DeformGeometry& geometry) {
  using Tile = DeformBackwardWeightTile<T>;
  const int tiles = geometry.channels / geometry.run * ceil_div(geometry.run, Tile::kChannels) *
                    ceil_div(geometry.group_outputs, Tile::kOutputs);
  const int steps = ceil_div(geometry.pixels, Tile::kDepth);
  return dim3(tiles, geometry.taps, deform_splits(tiles * geometry.taps, steps));
}

// How many Accumulate<T> the workspace holds.
template <typename T>
int64_t deform_backward_weight_workspace(const DeformGeometry& geometry) {
  return deform_backward_weight_grid<T>(geometry).z * DeformWeightSums(geometry).size;
}

// At least one pixel.
template <typename T>
void launch_deform_backward_weight(const DeformBackwardWeightParams<T>& params,
                                   cudaStream_t stream) {
  const DeformGeometry& geometry = params.sampling.geometry;
  const dim3 grid = deform_backward_weight_grid<T>(geometry);
  const bool is_whole =
      geometry.run % Packed<T>::kSize == 0 && geometry.group_outputs % Packed<T>::kSize == 0;
  const auto kernel =
      is_whole ? deform_backward_weight_kernel<T, true> : deform_backward_weight_kernel<T, false>;
  launch(kernel, grid, dim3(DeformBackwardWeightTile<T>::kThreads),
         sizeof(DeformBackwardWeightTile<T>), stream, params);
  const int weights = geometry.out_channels * geometry.taps * geometry.group_channels;
  launch(deform_finish_weight_kernel<T>, dim3(ceil_div(weights, kWeightFinishThreads)),
         dim3(kWeightFinishThreads), 0, stream, params, static_cast<int>(grid.z));
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
