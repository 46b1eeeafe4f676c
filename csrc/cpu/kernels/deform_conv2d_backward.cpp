// Deformable convolution, backward. With g the gradient of the output and the columns c[pixel][k],
// k = [tap][channel], as in the forward pass:
//
//   grad_columns = g weight        grad_weight = g^T columns
//
// and grad_columns go on to the four corners of each sampling point, by their weights (grad_input),
// and, multiplied with the corners, to the point's position (grad_offset) and mask.
//
// A call owns a slice of channels, as many as a tile of the matrix product has columns. No other
// call adds to their grad_input and grad_weight, so that threads need neither atomics nor buffers
// to reduce, and every number is summed in the same order whatever the number of threads. (Offset
// and mask belong to all channels: each slice returns its share.) The slice's input and grad_input
// are kept as rows of one slice each, dense in cache. Blocks of 128 pixels pass one tap at a time:
// grad_columns into a panel of 16 KB, one sweep that reads each corner once, scatters, and leaves
// the columns in another such panel, and their product with g.

#include "buffer.h"
#include "deform_conv2d.h"
#include "deform_sampling.h"
#include "gemm.h"
#include "rows.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

constexpr int64_t kBlockPixels = 128;
constexpr int64_t kDepth = 256;

template <typename T>
constexpr int64_t kSlice = kTileColumns<T>;

// One tap of `count` pixels, for a slice: reads grad_columns, adds to grad_input, writes columns
// and this slice's share of the gradients of y, x and, unless null, the mask.
template <typename T>
void scatter(const Sample<T>* samples, int64_t count, const T* input, const T* grad_columns,
             T* grad_input, T* columns, T* grad_y, T* grad_x, T* grad_mask) {
  for (int64_t i = 0; i < count; ++i) {
    const Sample<T>& s = samples[i];
    Vec<T> along_y{}, along_x{}, along_mask{};
    for (int64_t c = i * kSlice<T>, lane = 0; lane < kSlice<T>; lane += kLanes<T>) {
      Vec<T> corners[4];
      for (int j = 0; j < 4; ++j) corners[j] = load(input + s.corners[j] * kSlice<T> + lane);
      const Vec<T> top = s.weight_x[0] * corners[0] + s.weight_x[1] * corners[1];
      const Vec<T> bottom = s.weight_x[0] * corners[2] + s.weight_x[1] * corners[3];
      const Vec<T> top_slope = s.slope_x[0] * corners[0] + s.slope_x[1] * corners[1];
      const Vec<T> bottom_slope = s.slope_x[0] * corners[2] + s.slope_x[1] * corners[3];
      const Vec<T> value = s.weight_y[0] * top + s.weight_y[1] * bottom;
      const Vec<T> grad = load(grad_columns + c + lane);
      along_y += grad * (s.slope_y[0] * top + s.slope_y[1] * bottom);
      along_x += grad * (s.weight_y[0] * top_slope + s.weight_y[1] * bottom_slope);
      along_mask += grad * value;
      store(columns + c + lane, s.modulation * value);
      // One after another: at the border two corners may be the same pixel.
      for (int j = 0; j < 4; ++j) {
        const T weight = s.weight_y[j / 2] * s.weight_x[j % 2] * s.modulation;
        T* to = grad_input + s.corners[j] * kSlice<T> + lane;
        store(to, load(to) + weight * grad);
      }
    }
    grad_y[i] = s.modulation * sum(along_y);
    grad_x[i] = s.modulation * sum(along_x);
    if (grad_mask != nullptr) grad_mask[i] = sum(along_mask);
  }
}

}  // namespace

template <typename T>
void deform_conv2d_samples(const DeformConv2dParams<T>& p, Sample<T>* samples, int64_t begin,
                           int64_t end) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t pixels = p.out_height * p.out_width;
  for (int64_t index = begin, next; index < end; index = next) {
    const int64_t plane = index / pixels;  // of [image, offset_group, tap]
    next = min((plane + 1) * pixels, end);
    sample(p, plane / taps / p.offset_groups, plane / taps % p.offset_groups, plane % taps,
           index % pixels, next - index, samples + index);
  }
}

template <typename T>
int64_t deform_conv2d_slice() {
  return kSlice<T>;
}

template <typename T>
void deform_conv2d_backward(const DeformConv2dBackward<T>& p, int64_t first_channel,
                            int64_t channels, T* grad_offset, T* grad_mask) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t in_pixels = p.height * p.width, pixels = p.out_height * p.out_width;
  const int64_t group_channels = p.channels / p.groups;
  const int64_t out_channels = p.out_channels / p.groups;
  const int64_t group = first_channel / group_channels;
  const int64_t offset_group = first_channel / (p.channels / p.offset_groups);
  const int64_t padded_channels = round_up(out_channels, kTileColumns<T>);
  // The weight group's part of g, and the slice's part of weight [out_channel][channel][tap].
  const T* group_grad = p.grad + group * out_channels;
  const int64_t weight_start =
      group * out_channels * group_channels * taps + first_channel % group_channels * taps;

  // Zeros are where the slice has lanes without a channel.
  Buffer<T> input(in_pixels * kSlice<T>), grad_input(in_pixels * kSlice<T>);
  fill_zero<T>(input, in_pixels * kSlice<T>);
  Buffer<T> weight(taps * out_channels * kSlice<T>);  // [tap][out_channel][lane]
  fill_zero<T>(weight, taps * out_channels * kSlice<T>);
  Buffer<T> grad_weight(taps * kSlice<T> * padded_channels);  // [tap][lane][out_channel]
  fill_zero<T>(grad_weight, taps * kSlice<T> * padded_channels);
  // [out_channel / kDepth][pixel][out_channel % kDepth], zeros after the last channel.
  const int64_t depths = ceil_div(out_channels, kDepth), panel_size = kBlockPixels * kDepth;
  Buffer<T> grad(depths * panel_size);
  fill_zero<T>(grad, depths * panel_size);
  Buffer<T> columns(kBlockPixels * kSlice<T>), grad_columns(kBlockPixels * kSlice<T>);
  fill_zero<T>(grad_columns, kBlockPixels * kSlice<T>);  // which it stays without out_channels

  for (int64_t out = 0; out < out_channels; ++out) {
    const T* from = p.weight + weight_start + out * group_channels * taps;
    for (int64_t lane = 0; lane < channels; ++lane) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        weight[(tap * out_channels + out) * kSlice<T> + lane] = from[lane * taps + tap];
      }
    }
  }

  for (int64_t image = 0; image < p.batch; ++image) {
    const int64_t image_start =
        image * p.input.image_stride + first_channel * p.input.channel_stride;
    image_to_rows<T>(p.input.data + image_start, p.input.channel_stride, p.input.pixel_stride,
                     channels, in_pixels, input, kSlice<T>);
    fill_zero<T>(grad_input, in_pixels * kSlice<T>);
    for (int64_t first = 0; first < pixels; first += kBlockPixels) {
      const int64_t count = min(kBlockPixels, pixels - first);
      for (int64_t out = 0; out < out_channels; out += kDepth) {
        const int64_t depth = min(kDepth, out_channels - out);
        copy_rows<T>(group_grad + (image * pixels + first) * p.out_channels + out, p.out_channels,
                     count, depth, grad + out / kDepth * panel_size, kDepth);
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t out = 0; out < out_channels; out += kDepth) {
          const int64_t depth = min(kDepth, out_channels - out);
          multiply<T, kDepth, 1>({grad + out / kDepth * panel_size,
                                  weight + (tap * out_channels + out) * kSlice<T>, grad_columns,
                                  count, depth, kSlice<T>, kSlice<T>, out > 0});
        }
        const int64_t plane = image * taps + tap;
        T* grad_y = grad_offset + plane * 2 * pixels + first;
        scatter<T>(p.samples + ((image * p.offset_groups + offset_group) * taps + tap) * pixels +
                       first,
                   count, input, grad_columns, grad_input, columns, grad_y, grad_y + pixels,
                   grad_mask == nullptr ? nullptr : grad_mask + plane * pixels + first);
        for (int64_t out = 0; out < padded_channels; out += kTileColumns<T>) {
          multiply<T, 1, kSlice<T>>({columns, grad + out / kDepth * panel_size + out % kDepth,
                                     grad_weight + tap * kSlice<T> * padded_channels + out,
                                     channels, count, kDepth, padded_channels, true});
        }
      }
    }
    rows_to_image<T>(grad_input, kSlice<T>, channels, in_pixels,
                     p.grad_input.data + image * p.grad_input.image_stride +
                         first_channel * p.grad_input.channel_stride,
                     p.grad_input.channel_stride, p.grad_input.pixel_stride);
  }

  for (int64_t out = 0; out < out_channels; ++out) {
    T* to = p.grad_weight + weight_start + out * group_channels * taps;
    for (int64_t lane = 0; lane < channels; ++lane) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        to[lane * taps + tap] = grad_weight[(tap * kSlice<T> + lane) * padded_channels + out];
      }
    }
  }
}

#define FASTINST_INSTANTIATE(T)                                                               \
  template void deform_conv2d_samples(const DeformConv2dParams<T>&, Sample<T>*, int64_t, int64_t); \
  template int64_t deform_conv2d_slice<T>();                                                  \
  template void deform_conv2d_backward(const DeformConv2dBackward<T>&, int64_t, int64_t, T*, T*);
FASTINST_INSTANTIATE(float)
FASTINST_INSTANTIATE(double)

}  // namespace FASTINST_ISA
}  // namespace fastinst
