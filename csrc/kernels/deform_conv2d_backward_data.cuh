// What a deformable convolution's inputs get back: gradients of the image, the offsets and the
// mask.
//
//     grad_column[pixel, tap, channel] = sum over o of grad[pixel, o] * weight[o, tap, channel]
//
// goes to the four corners that the column was interpolated from, weighted as they were, and its
// product with their values says how the loss changes with their weights, hence with the offset and
// the mask (deform_sampling.cuh; grad is [B, h, w, C_out]).
//
// A block owns 64 pixels at one tap for one offset group, and all channels of that group, in tiles
// of 128. So the sums over channels that offsets and masks need are the block's own, and are the
// same on every run; the gradient of the image is added to by many blocks at once, by atomics in
// Accumulate<T>, so that its last bits depend on their order. For each tile, the 8 warps multiply
// 32 pixels x 32 channels each, and leave grad_column in shared memory, where the operands were;
// then each warp takes 8 pixels, its lanes neighbouring channels: loads and atomics are of whole
// sectors, and a warp's four sums of products cost five shuffles each for 128 channels.
#pragma once

#include "deform_sampling.cuh"
#include "launch.cuh"
#include "tile.cuh"

namespace fastinst {

template <typename T>
struct DeformBackwardDataParams {
  Sampling<T> sampling;
  const T* grad;
  const T* input;
  const T* weight;            // [C_out, kh, kw, C / groups]
  Accumulate<T>* grad_input;  // [B, H, W, C]
  MixedArray<T> grad_offset;  // contiguous
  MixedArray<T> grad_mask;    // contiguous; null data for none
};

template <typename T>
struct DeformBackwardDataTile {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
  static constexpr int kPixels = 64, kChannels = sizeof(T) == 8 ? 64 : 128;
  static constexpr int kDepth = 4 * Packed<T>::kSize;  // outputs multiplied in a step
  static constexpr int kWarpRows = 2, kWarpColumns = kWarps / kWarpRows;
  static constexpr int kWarpPixels = kPixels / kWarpRows;
  static constexpr int kWarpChannels = kChannels / kWarpColumns;
  static constexpr int kGradStride = kDepth + kRowPadding<T>;
  static constexpr int kWeightStride = kChannels + kRowPadding<T>;
  static constexpr int kColumnStride = kChannels + kRowPadding<Accumulate<T>>;

  struct Operands {
    T grad[2][kPixels][kGradStride];
    T weight[2][kDepth][kWeightStride];
  };
  union {
    Operands operands;
    Accumulate<T> grad_columns[kPixels][kColumnStride];
  };
  Corner<Accumulate<T>> corners[kPixels][4];
  Accumulate<T> modulation[kPixels];
  Accumulate<T> products[kPixels][4];  // sum over channels of grad_column * the corner's value
};

// kWhole: outputs of a group and channels of a run are whole vectors.
template <bool kWhole, typename T>
__device__ __forceinline__ void multiply_grad_columns(const DeformBackwardDataParams<T>& params,
                                                      DeformBackwardDataTile<T>& tile, int tap,
                                                      int channel, int count) {
  using Tile = DeformBackwardDataTile<T>;
  constexpr int kVector = Packed<T>::kSize;
  const DeformGeometry& geometry = params.sampling.geometry;
  const int first_output = channel / geometry.group_channels * geometry.group_outputs;
  const int first_pixel = blockIdx.x * Tile::kPixels;
  const auto fetch = [&](int buffer, int begin) {
    {
      const int row = threadIdx.x / 4, vector = threadIdx.x % 4 * kVector;
      const bool exists = first_pixel + row < geometry.pixels;
      copy_channels<kWhole>(tile.operands.grad[buffer][row] + vector,
                            params.grad + int64_t(first_pixel + row) * geometry.out_channels +
                                first_output + begin + vector,
                            exists ? geometry.group_outputs - begin - vector : 0);
    }
    constexpr int kVectors = Tile::kChannels / kVector, kRows = Tile::kThreads / kVectors;
    const int vector = threadIdx.x % kVectors * kVector;
#pragma unroll
    for (int i = 0; i < Tile::kDepth; i += kRows) {
      const int row = i + threadIdx.x / kVectors;
      const bool exists = begin + row < geometry.group_outputs;
      const int weight_row = (first_output + begin + row) * geometry.taps + tap;
      copy_channels<kWhole>(tile.operands.weight[buffer][row] + vector,
                            params.weight + weight_row * geometry.group_channels +
                                channel % geometry.group_channels + vector,
                            exists ? count - vector : 0);
    }
    __pipeline_commit();
  };

  const int warp = threadIdx.x / kWarpSize;
  const int warp_pixel = warp / Tile::kWarpColumns * Tile::kWarpPixels;
  const int warp_channel = warp % Tile::kWarpColumns * Tile::kWarpChannels;
  WarpTile<T, Tile::kWarpPixels, Tile::kWarpChannels> sums;
  sums.clear();
  fetch(0, 0);
  int buffer = 0;
  for (int begin = 0; begin < geometry.group_outputs; begin += Tile::kDepth, buffer = 1 - buffer) {
    __pipeline_wait_prior(0);
    __syncthreads();
    if (begin + Tile::kDepth < geometry.group_outputs) fetch(1 - buffer, begin + Tile::kDepth);
    sums.template multiply_add<Tile::kDepth, Order::kRowMajor, Order::kRowMajor>(
        tile.operands.grad[buffer][warp_pixel], Tile::kGradStride,
        &tile.operands.weight[buffer][0][warp_channel], Tile::kWeightStride);
  }
  __syncthreads();
  sums.store(&tile.grad_columns[warp_pixel][warp_channel], Tile::kColumnStride);
  __syncthreads();
}

// One warp's pixels: to the image, and into tile.products.
template <typename T>
__device__ __forceinline__ void scatter_grad_columns(const DeformBackwardDataParams<T>& params,
                                                     DeformBackwardDataTile<T>& tile, int channel,
                                                     int count) {
  using Tile = DeformBackwardDataTile<T>;
  constexpr int kPixelsOfWarp = Tile::kPixels / Tile::kWarps;
  constexpr int kLaneChannels = Tile::kChannels / kWarpSize;  // lane + 32 i
  const int lane = threadIdx.x % kWarpSize;
  const int channels = params.sampling.geometry.channels;
  for (int i = 0; i < kPixelsOfWarp; ++i) {
    const int pixel = threadIdx.x / kWarpSize * kPixelsOfWarp + i;
    T values[4][kLaneChannels];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int source = tile.corners[pixel][corner].pixel;
#pragma unroll
      for (int j = 0; j < kLaneChannels; ++j) {
        const int c = lane + kWarpSize * j;
        values[corner][j] = source >= 0 && c < count
                                ? params.input[int64_t(source) * channels + channel + c]
                                : narrow<T>(0);
      }
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int source = tile.corners[pixel][corner].pixel;
      if (source < 0) continue;
      const Accumulate<T> share = tile.corners[pixel][corner].weight * tile.modulation[pixel];
      Accumulate<T>* target = params.grad_input + int64_t(source) * channels + channel;
      Accumulate<T> product = 0;
#pragma unroll
      for (int j = 0; j < kLaneChannels; ++j) {
        const int c = lane + kWarpSize * j;
        if (c >= count) continue;
        const Accumulate<T> grad_column = tile.grad_columns[pixel][c];
        product += grad_column * widen(values[corner][j]);
        atomicAdd(target + c, share * grad_column);
      }
      product = warp_reduce(product, Sum());
      if (lane == 0) tile.products[pixel][corner] += product;
    }
  }
}

template <typename T, bool kWhole>
__global__ void __launch_bounds__(DeformBackwardDataTile<T>::kThreads, 2)
    deform_backward_data_kernel(const DeformBackwardDataParams<T> params) {
  using Tile = DeformBackwardDataTile<T>;
  const DeformGeometry& geometry = params.sampling.geometry;
  Tile& tile = *shared_memory<Tile>();
  // The block: (pixel tile, tap, offset group).
  const int tap = blockIdx.y, group = blockIdx.z;
  const int first_channel = group * geometry.offset_channels;
  {
    const int row = threadIdx.x / 4, corner = threadIdx.x % 4;
    const auto pixel = OutputPixel::at(geometry, blockIdx.x * Tile::kPixels + row);
    const auto fetched = params.sampling.fetch(pixel, tap, group);
    tile.corners[row][corner] = params.sampling.corner(pixel, tap, fetched, corner);
    tile.products[row][corner] = 0;
    if (corner == 0) tile.modulation[row] = params.sampling.modulation(fetched);
  }
  __syncthreads();

  for (int run = 0; run < geometry.offset_channels; run += geometry.run) {
    for (int chunk = 0; chunk < geometry.run; chunk += Tile::kChannels) {
      const int channel = first_channel + run + chunk, count = geometry.run - chunk;
      multiply_grad_columns<kWhole>(params, tile, tap, channel, count);
      scatter_grad_columns(params, tile, channel, min(count, Tile::kChannels));
      __syncthreads();
    }
  }

  const OutputPixel pixel = OutputPixel::at(geometry, blockIdx.x * Tile::kPixels + threadIdx.x);
  if (threadIdx.x >= Tile::kPixels || pixel.image < 0) return;
  Accumulate<T> grad_y = 0, grad_x = 0, grad_mask = 0;
  for (int i = 0; i < 4; ++i) {
    const auto corner = tile.corners[threadIdx.x][i];
    const Accumulate<T> product = tile.products[threadIdx.x][i];
    grad_mask += corner.weight * product;
    grad_y += corner.weight_dy * product;
    grad_x += corner.weight_dx * product;
  }
  const int plane = geometry.out_height * geometry.out_width;
  const int position = pixel.y * geometry.out_width + pixel.x;
  const int64_t map =
      (int64_t(pixel.image) * geometry.offset_groups + group) * geometry.taps + tap;
  const Accumulate<T> modulation = tile.modulation[threadIdx.x];
  params.grad_offset.store(2 * map * plane + position, modulation * grad_y);
  params.grad_offset.store((2 * map + 1) * plane + position, modulation * grad_x);
  if (params.grad_mask.data != nullptr) params.grad_mask.store(map * plane + position, grad_mask);
}

#ifndef __CUDACC_RTC__

template <typename T>
void launch_deform_backward_data(const DeformBackwardDataParams<T>& params, cudaStream_t stream) {
  using Tile = DeformBackwardDataTile<T>;
  const DeformGeometry& geometry = params.sampling.geometry;
  const size_t elements =
      size_t(geometry.batch) * geometry.height * geometry.width * geometry.channels;
  check(cudaMemsetAsync(params.grad_input, 0, elements * sizeof(Accumulate<T>), stream));
  const bool is_whole =
      geometry.run % Packed<T>::kSize == 0 && geometry.group_outputs % Packed<T>::kSize == 0;
  const dim3 grid(ceil_div(geometry.pixels, Tile::kPixels), geometry.taps, geometry.offset_groups);
  launch(is_whole ? deform_backward_data_kernel<T, true> : deform_backward_data_kernel<T, false>,
         grid, dim3(Tile::kThreads), sizeof(Tile), stream, params);
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
