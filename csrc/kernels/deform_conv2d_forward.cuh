// Deformable convolution as one matrix product whose left factor is never in memory:
//
//     out[pixel, o] = relu(bias[o] + sum over (tap, channel) of column[pixel, tap, channel] *
//                                                               weight[o, tap, channel])
//
// input [B, H, W, C], weight [C_out, kh, kw, C / groups], out [B, h, w, C_out] or [B, C_out, h, w];
// a pixel is one of the B h w of the output, column is what deform_sampling.cuh interpolates there.
//
// A block owns 64 pixels x 256 outputs of one weight group, so that with up to 256 outputs every
// column is gathered once. It walks the depth (taps, then runs of channels) in steps of 64 bytes:
// each thread gathers 16 bytes of one column, four lanes to a pixel, and copies four vectors of the
// weights; then each of the 8 warps multiplies the 64 pixels with its 32 outputs. What the next
// step needs is fetched meanwhile into the other half of shared memory: 2 x (5 + 20) KB with
// padding.
//
// One image has few tiles (res4 of a 640x864 image: 34), so their depth is split between blocks
// too. These leave sums in a workspace, and a second kernel adds them up in a fixed order, with
// bias and ReLU: results are the same on every run. It also turns the layout where the image is [B,
// C, H, W].
#pragma once

#include "deform_sampling.cuh"
#include "launch.cuh"
#include "tile.cuh"

namespace fastinst {

template <typename T>
struct DeformForwardParams {
  Sampling<T> sampling;
  const T* input;
  const T* weight;
  MixedArray<T> bias;        // [C_out]; null data for none
  Accumulate<T>* workspace;  // deform_forward_workspace(geometry) of them
  T* output;
  bool output_is_channels_last;
  bool relu;
};

// Sums of one split: [weight groups, pixels, outputs of the group], the latter two in whole tiles
// of a warp.
struct DeformSums {
  static constexpr int kTileRows = 64, kTileColumns = 32;
  int rows, columns;
  int64_t size;

  __host__ __device__ explicit DeformSums(const DeformGeometry& geometry)
      : rows(round_up(geometry.pixels, kTileRows)),
        columns(round_up(geometry.group_outputs, kTileColumns)),
        size(int64_t(geometry.weight_groups) * rows * columns) {}
};

template <typename T>
struct DeformForwardTile {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
  static constexpr int kPixels = DeformSums::kTileRows;
  static constexpr int kWarpOutputs = DeformSums::kTileColumns, kOutputs = kWarps * kWarpOutputs;
  static constexpr int kDepth = ColumnGather<T>::kChannels;
  static constexpr int kStride = kDepth + kRowPadding<T>;
  static_assert(kPixels * ColumnGather<T>::kLanes == kThreads, "one gathered vector a thread");

  T columns[2][kPixels][kStride];
  T weights[2][kOutputs][kStride];
  GatherPlan<T, kPixels> plans[2];
};

// A step of the product's depth: up to kDepth channels of a run, at a tap.
template <int kDepth>
struct DeformStep {
  int tap, run_begin, chunk;  // the run's first channel in its weight group

  static __host__ __device__ int count(const DeformGeometry& geometry) {
    const int runs = geometry.group_channels / geometry.run;
    return geometry.taps * runs * ceil_div(geometry.run, kDepth);
  }

  __device__ DeformStep(const DeformGeometry& geometry, int step) {
    const int steps_of_run = ceil_div(geometry.run, kDepth);
    const int runs = geometry.group_channels / geometry.run;
    const int visit = step / steps_of_run;
    tap = visit / runs;
    run_begin = visit % runs * geometry.run;
    chunk = step % steps_of_run * kDepth;
  }

  __device__ bool is_last_of_run(const DeformGeometry& geometry) const {
    return chunk + kDepth >= geometry.run;
  }
  __device__ DeformStep next_run(const DeformGeometry& geometry) const {
    DeformStep next = *this;
    next.chunk = 0;
    next.run_begin += geometry.run;
    if (next.run_begin == geometry.group_channels) next.run_begin = 0, ++next.tap;
    return next;
  }
};

// A100 and H100 have shared memory for two blocks, elsewhere one may have all registers.
#if __CUDA_ARCH__ + 0 == 800 || __CUDA_ARCH__ + 0 == 900
constexpr int kForwardBlocks = 2;
#else
constexpr int kForwardBlocks = 1;
#endif

// kWhole: runs are whole vectors, see deform_geometry.cuh.
template <typename T, bool kWhole>
__global__ void __launch_bounds__(DeformForwardTile<T>::kThreads,
                                  kWhole && sizeof(T) < 8 ? kForwardBlocks : 1)
    deform_forward_kernel(const DeformForwardParams<T> params) {
  using Tile = DeformForwardTile<T>;
  constexpr int kLanes = ColumnGather<T>::kLanes;
  const Sampling<T>& sampling = params.sampling;
  const DeformGeometry& geometry = sampling.geometry;
  Tile& tile = *shared_memory<Tile>();

  // The block: (pixel tile, weight group and output tile, split).
  const int output_tiles = ceil_div(geometry.group_outputs, Tile::kOutputs);
  const int group = blockIdx.y / output_tiles;
  const int first_pixel = blockIdx.x * Tile::kPixels;
  const int first_output = blockIdx.y % output_tiles * Tile::kOutputs;  // in its group
  const int steps = DeformStep<Tile::kDepth>::count(geometry);
  const int begin = int64_t(steps) * blockIdx.z / gridDim.z;
  const int end = int64_t(steps) * (blockIdx.z + 1) / gridDim.z;

  // The thread: a row of the tile, a vector in it, and a corner of its plan.
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int lane_channel = lane * Packed<T>::kSize;
  const int warp_output = threadIdx.x / kWarpSize * Tile::kWarpOutputs;
  using Step = DeformStep<Tile::kDepth>;
  using Fetched = typename Sampling<T>::Fetched;

  const auto look_up = [&](const Step& step) {
    const int channel = group * geometry.group_channels + step.run_begin;
    return sampling.fetch(OutputPixel::at(geometry, first_pixel + row), step.tap,
                          channel / geometry.offset_channels);
  };
  const auto make_plan = [&](int plan, const Step& step, const Fetched& looked_up) {
    tile.plans[plan].set(sampling, row, lane, OutputPixel::at(geometry, first_pixel + row),
                         step.tap, looked_up);
  };
  ColumnGather<T> gather;
  const auto fetch = [&](int buffer, int plan, const Step& step) {
    const int channel = step.run_begin + step.chunk + lane_channel;
    const int count = geometry.run - step.chunk - lane_channel;
    gather.template load<kWhole>(tile.plans[plan].pixels[row],
                                 params.input + group * geometry.group_channels + channel,
                                 geometry.channels, count);
    const int row_stride = geometry.taps * geometry.group_channels;
    const T* weights = params.weight + step.tap * geometry.group_channels + channel;
#pragma unroll
    for (int i = 0; i < Tile::kOutputs; i += Tile::kPixels) {
      const int output = first_output + i + row;
      const bool exists = output < geometry.group_outputs;
      copy_channels<kWhole>(tile.weights[buffer][i + row] + lane_channel,
                            weights + (group * geometry.group_outputs + output) * row_stride,
                            exists ? count : 0);
    }
    __pipeline_commit();
  };
  const auto finish_fetch = [&](int buffer, int plan) {
    gather.blend(tile.plans[plan].weights[row]).store(tile.columns[buffer][row] + lane_channel);
    __pipeline_wait_prior(0);
  };

  WarpTile<T, Tile::kPixels, Tile::kWarpOutputs> sums;
  sums.clear();
  const bool warp_has_outputs = first_output + warp_output < geometry.group_outputs;

  // The plan of a run is made while the run before is multiplied.
  Step step(geometry, begin);
  make_plan(0, step, look_up(step));
  __syncthreads();
  fetch(0, 0, step);
  const Step second = step.next_run(geometry);
  if (second.tap < geometry.taps) make_plan(1, second, look_up(second));
  finish_fetch(0, 0);
  __syncthreads();
#pragma unroll 1
  for (int left = end - begin, buffer = 0, plan = 0; left > 0; --left, buffer = 1 - buffer) {
    Fetched looked_up = {};
    const bool has_next = left > 1, has_run = has_next && step.is_last_of_run(geometry);
    if (has_run) {
      step = step.next_run(geometry);
      plan = 1 - plan;
    } else {
      step.chunk += Tile::kDepth;
    }
    const Step ahead = step.next_run(geometry);
    const bool makes_plan = has_run && ahead.tap < geometry.taps;
    if (has_next) fetch(1 - buffer, plan, step);
    if (makes_plan) looked_up = look_up(ahead);
    if (warp_has_outputs) {
      sums.template multiply_add<Tile::kDepth, Order::kRowMajor, Order::kColumnMajor>(
          tile.columns[buffer][0], Tile::kStride, tile.weights[buffer][warp_output], Tile::kStride);
    }
    if (has_next) finish_fetch(1 - buffer, plan);
    if (makes_plan) make_plan(1 - plan, ahead, looked_up);
    __syncthreads();
  }
  if (warp_has_outputs) {
    const DeformSums layout(geometry);
    const int64_t first_sum = (int64_t(group) * layout.rows + first_pixel) * layout.columns;
    sums.store(params.workspace + blockIdx.z * layout.size + first_sum + first_output + warp_output,
               layout.columns);
  }
}

// A block owns 32 pixels x 32 outputs of one group.
constexpr int kFinishTile = 32, kFinishRows = 8;

template <typename T>
__global__ void __launch_bounds__(kFinishTile * kFinishRows)
    deform_finish_kernel(const DeformForwardParams<T> params, int splits) {
  __shared__ Accumulate<T> tile[kFinishTile][kFinishTile + 1];
  const DeformGeometry& geometry = params.sampling.geometry;
  const DeformSums layout(geometry);
  const int first_pixel = blockIdx.x * kFinishTile, first_output = blockIdx.y * kFinishTile;
  const int group = blockIdx.z, group_outputs = geometry.group_outputs;
  const int plane = geometry.out_height * geometry.out_width;

  constexpr int kRows = kFinishTile / kFinishRows;  // of a thread
  const int output = first_output + threadIdx.x, channel = group * group_outputs + output;
  const int rows = output < group_outputs ? geometry.pixels - first_pixel : 0;
  const Accumulate<T>* sums =
      params.workspace + (int64_t(group) * layout.rows + first_pixel) * layout.columns + output;
  Accumulate<T> values[kRows] = {};
  for (int split = 0; split < splits; ++split) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = threadIdx.y + i * kFinishRows;
      if (row < rows) values[i] += sums[split * layout.size + row * layout.columns];
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = threadIdx.y + i * kFinishRows;
    if (row >= rows) continue;
    Accumulate<T> value = values[i];
    if (params.bias.data != nullptr) value += params.bias.load(channel);
    if (params.relu) value = value < 0 ? Accumulate<T>(0) : value;  // what is not a number remains
    if (params.output_is_channels_last) {
      params.output[int64_t(first_pixel + row) * geometry.out_channels + channel] =
          narrow<T>(value);
    } else {
      tile[row][threadIdx.x] = value;
    }
  }
  if (params.output_is_channels_last) return;
  __syncthreads();
  const int pixel = first_pixel + threadIdx.x;
  const int64_t image_channel =
      int64_t(pixel / plane) * geometry.out_channels + group * group_outputs + first_output;
  for (int row = threadIdx.y; row < kFinishTile; row += kFinishRows) {
    if (pixel >= geometry.pixels || first_output + row >= group_outputs) return;
    params.output[(image_channel + row) * plane + pixel % plane] =
        narrow<T>(tile[threadIdx.x][row]);
  }
}

#ifndef __CUDACC_RTC__

template <typename T>
dim3 deform_forward_grid(const DeformGeometry& geometry) {
  using Tile = DeformForwardTile<T>;
  const int pixel_tiles = ceil_div(geometry.pixels, Tile::kPixels);
  const int output_tiles =
      geometry.weight_groups * ceil_div(geometry.group_outputs, Tile::kOutputs);
  const int steps = DeformStep<Tile::kDepth>::count(geometry);
  return dim3(pixel_tiles, output_tiles, deform_splits(pixel_tiles * output_tiles, steps));
}

// How many Accumulate<T> the workspace holds.
template <typename T>
int64_t deform_forward_workspace(const DeformGeometry& geometry) {
  return deform_forward_grid<T>(geometry).z * DeformSums(geometry).size;
}

template <typename T>
void launch_deform_forward(const DeformForwardParams<T>& params, cudaStream_t stream) {
  const DeformGeometry& geometry = params.sampling.geometry;
  const dim3 grid = deform_forward_grid<T>(geometry);
  const bool is_whole = geometry.run % Packed<T>::kSize == 0;
  launch(is_whole ? deform_forward_kernel<T, true> : deform_forward_kernel<T, false>, grid,
         dim3(DeformForwardTile<T>::kThreads), sizeof(DeformForwardTile<T>), stream, params);
  const dim3 finish_grid(ceil_div(geometry.pixels, kFinishTile),
                         ceil_div(geometry.group_outputs, kFinishTile), geometry.weight_groups);
  launch(deform_finish_kernel<T>, finish_grid, dim3(kFinishTile, kFinishRows), 0, stream, params,
         static_cast<int>(grid.z));
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
