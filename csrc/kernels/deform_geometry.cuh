// The sizes of a deformable convolution, and how its products are shared out between blocks.
//
// Channels are walked in runs of gcd(C / weight groups, C / offset groups): within a run all share
// their weights' group and their offsets, and it starts where a vector may if its length is whole
// vectors.
#pragma once

#include "common.cuh"
#include "launch.cuh"

namespace fastinst {

struct DeformGeometry {
  int batch, channels, height, width;       // input, [B, H, W, C]
  int out_channels, out_height, out_width;  // output
  int kernel_height, kernel_width;
  int stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;
  int weight_groups, offset_groups;
  // What follows from these, by complete().
  int pixels, taps;                   // of the output; of the kernel
  int group_channels, group_outputs;  // of a weight group
  int offset_channels, run;           // of an offset group; of a run

  __host__ __device__ void complete() {
    pixels = batch * out_height * out_width;
    taps = kernel_height * kernel_width;
    group_channels = channels / weight_groups;
    group_outputs = out_channels / weight_groups;
    offset_channels = channels / offset_groups;
    run = group_channels;
    for (int rest = offset_channels; rest != 0;) {
      const int next = run % rest;
      run = rest;
      rest = next;
    }
  }
};

#ifndef __CUDACC_RTC__

// How many blocks share the depth of a tile: as many as make the slowest multiprocessor's work
// least. Writing and reading a tile of sums costs about as much as `kSplitCost` steps.
inline int deform_splits(int tiles, int steps) {
  constexpr int kMaximumSplits = 16, kSplitCost = 5;
  const int multiprocessors = multiprocessor_count();
  int best = 1, least = 0;
  for (int splits = 1; splits <= kMaximumSplits && splits <= steps; ++splits) {
    const int rounds = ceil_div(tiles * splits, multiprocessors);
    const int work = rounds * (ceil_div(steps, splits) + kSplitCost);
    if (splits == 1 || work < least) best = splits, least = work;
    if (rounds > 2) break;  // full already
  }
  return best;
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
