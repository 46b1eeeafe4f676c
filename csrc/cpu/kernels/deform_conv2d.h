// What the host side of the deformable convolution asks of its kernels, which compute in T = float
// or double. All tensors are contiguous, but images of `Image` may be channels-last.

#pragma once

#include <stdint.h>

#include "../isa.h"

namespace fastinst {

// [batch, channels, pixels]; one of the last two strides is 1.
template <typename T>
struct Image {
  T* data;
  int64_t image_stride, channel_stride, pixel_stride;
};

template <typename T>
struct DeformConv2dParams {
  int64_t batch, channels, height, width;
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride[2], padding[2], dilation[2];
  int64_t groups, offset_groups;
  const T* offset;  // [batch, offset_groups, taps, 2, out_height * out_width]
  const T* mask;    // [batch, offset_groups, taps, out_height * out_width], or null
};

template <typename T>
struct DeformConv2dForward : DeformConv2dParams<T> {
  const T* input;   // [batch, height * width, channels]
  const T* weight;  // packed
  const T* bias;    // [out_channels], or null
  bool relu;
  Image<T> output;
};

// Where one output pixel's tap samples the input, for the channels of one offset group.
template <typename T>
struct Sample {
  int32_t corners[4];          // pixels top left, top right, bottom left, bottom right
  T weight_y[2], weight_x[2];  // of top and bottom, of left and right; 0 outside
  T slope_y[2], slope_x[2];    // their derivatives: -1 and 1; 0 outside
  T modulation;                // the mask of v2, else 1
};

template <typename T>
struct DeformConv2dBackward : DeformConv2dParams<T> {
  const Sample<T>* samples;  // [batch, offset_groups, taps, out_height * out_width]
  const T* grad;    // [batch, out_height * out_width, out_channels]
  const T* weight;  // [out_channels, channels / groups, taps]
  Image<const T> input;
  Image<T> grad_input;
  T* grad_weight;
};

FASTINST_DECLARE(
    // Pixels begin ... end - 1, counted through all images, to rows [batch, pixels, channels].
    template <typename T> void deform_conv2d_rows(const Image<const T>& image, int64_t channels,
                                                  int64_t pixels, T* rows, int64_t begin,
                                                  int64_t end);

    // The weight is packed for the products in so many tiles of so many numbers.
    template <typename T> int64_t deform_conv2d_weight_tiles(const DeformConv2dParams<T>& params);
    template <typename T> int64_t deform_conv2d_tile_size(const DeformConv2dParams<T>& params);

    // Tiles begin ... end - 1 of a weight [out_channels, channels / groups, taps].
    template <typename T> void deform_conv2d_pack(const DeformConv2dParams<T>& params,
                                                  const T* weight, T* packed, int64_t begin,
                                                  int64_t end);

    // Output pixels begin ... end - 1, counted through all images.
    template <typename T> void deform_conv2d_forward(const DeformConv2dForward<T>& params,
                                                     int64_t begin, int64_t end);

    // Samples begin ... end - 1, counted in their order in DeformConv2dBackward.
    template <typename T> void deform_conv2d_samples(const DeformConv2dParams<T>& params,
                                                     Sample<T>* samples, int64_t begin,
                                                     int64_t end);

    // How many channels one call of the backward pass takes at most.
    template <typename T> int64_t deform_conv2d_slice();

    // The gradients of a slice of channels, all of one weight group and one offset group:
    // grad_input and grad_weight, and the slice's share of the gradients of offset,
    // [batch, taps, 2, pixels], and mask, [batch, taps, pixels] or null.
    template <typename T> void deform_conv2d_backward(const DeformConv2dBackward<T>& params,
                                                      int64_t first_channel, int64_t channels,
                                                      T* grad_offset, T* grad_mask))

}  // namespace fastinst
