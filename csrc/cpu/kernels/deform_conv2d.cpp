// Deformable convolution, forward:
//
//   out[y] = bias + sum over taps k of weight[:, :, k] @ mask[k, y] * input(y s - p + k d + offset)
//
// The input comes as rows, [pixel][channel]. A call takes a range of output pixels in blocks of
// 140. For each block it finds the sampling points once for all channels, then walks along the
// columns, k = [tap][channel of the weight group], 192 at a time: the block's columns are gathered
// into a panel, each corner of a tap being one contiguous run of channels, and multiplied with the
// weight at once. So columns never leave the second-level cache, where panel (108 KB), sums and
// sampling points lie together; 192 columns of the weight for one tile of output channels (24 KB)
// stay in the first level while the 140 pixels pass by, and all of the weight is read once a block.

#include "deform_conv2d.h"

#include "buffer.h"
#include "deform_sampling.h"
#include "gemm.h"
#include "rows.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

constexpr int64_t kBlockPixels = 140;
constexpr int64_t kDepth = 192;

// Columns of `count` pixels, `channels` of one tap: panel[pixel][channel], rows kDepth apart.
template <typename T>
void gather(const T* input, int64_t row_stride, const Sample<T>* samples, int64_t count,
            int64_t channels, T* panel) {
  for (int64_t i = 0; i < count; ++i, panel += kDepth) {
    const Sample<T>& s = samples[i];
    const T* rows[4];
    T weights[4];
    for (int corner = 0; corner < 4; ++corner) {
      rows[corner] = input + s.corners[corner] * row_stride;
      weights[corner] = s.weight_y[corner / 2] * s.weight_x[corner % 2] * s.modulation;
    }
    int64_t c = 0;
    for (; c + kLanes<T> <= channels; c += kLanes<T>) {
      store(panel + c, weights[0] * load(rows[0] + c) + weights[1] * load(rows[1] + c) +
                           weights[2] * load(rows[2] + c) + weights[3] * load(rows[3] + c));
    }
    for (; c < channels; ++c) {
      panel[c] = weights[0] * rows[0][c] + weights[1] * rows[1][c] + weights[2] * rows[2][c] +
                 weights[3] * rows[3][c];
    }
  }
}

// Columns begin ... end - 1 of a weight group; samples [offset_group][tap][count].
template <typename T>
void gather_columns(const DeformConv2dForward<T>& p, const T* input, int64_t group,
                    const Sample<T>* samples, int64_t count, int64_t begin, int64_t end, T* panel) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t group_channels = p.channels / p.groups;
  const int64_t offset_channels = p.channels / p.offset_groups;
  for (int64_t column = begin, next; column < end; column = next) {
    const int64_t tap = column / group_channels;
    const int64_t channel = group * group_channels + column % group_channels;
    const int64_t offset_group = channel / offset_channels;
    // As far as tap, offset group and panel reach.
    next = min((tap + 1) * group_channels, column + offset_channels - channel % offset_channels);
    next = min(next, end);
    gather(input + channel, p.channels, samples + (offset_group * taps + tap) * count, count,
           next - column, panel + (column - begin));
  }
}

// Bias and ReLU on the rows of a weight group, and out they go.
template <typename T>
void write(const DeformConv2dForward<T>& p, int64_t image, int64_t group, int64_t first,
           int64_t count, T* sums, int64_t sums_stride) {
  const int64_t channels = p.out_channels / p.groups;
  const int64_t first_channel = group * channels;
  for (int64_t i = 0; i < count; ++i) {
    T* row = sums + i * sums_stride;
    if (p.bias != nullptr) {
      for (int64_t c = 0; c < channels; ++c) row[c] += p.bias[first_channel + c];
    }
    if (p.relu) {
      for (int64_t c = 0; c < channels; ++c) row[c] = row[c] < 0 ? 0 : row[c];  // NaN stays
    }
  }
  const Image<T>& out = p.output;
  rows_to_image(sums, sums_stride, channels, count,
                out.data + image * out.image_stride + first_channel * out.channel_stride +
                    first * out.pixel_stride,
                out.channel_stride, out.pixel_stride);
}

template <typename T>
int64_t group_tiles(const DeformConv2dParams<T>& p) {
  return ceil_div(p.out_channels / p.groups, kTileColumns<T>);
}

template <typename T>
int64_t num_columns(const DeformConv2dParams<T>& p) {
  return p.kernel_height * p.kernel_width * (p.channels / p.groups);
}

}  // namespace

template <typename T>
void deform_conv2d_rows(const Image<const T>& image, int64_t channels, int64_t pixels, T* rows,
                        int64_t begin, int64_t end) {
  for (int64_t row = begin, next; row < end; row = next) {
    const int64_t index = row / pixels, pixel = row % pixels;
    next = min((index + 1) * pixels, end);
    image_to_rows(image.data + index * image.image_stride + pixel * image.pixel_stride,
                  image.channel_stride, image.pixel_stride, channels, next - row,
                  rows + row * channels, channels);
  }
}

template <typename T>
int64_t deform_conv2d_weight_tiles(const DeformConv2dParams<T>& p) {
  return p.groups * group_tiles(p);
}

template <typename T>
int64_t deform_conv2d_tile_size(const DeformConv2dParams<T>& p) {
  return num_columns(p) * kTileColumns<T>;
}

// packed[group][tile][tap][channel][lane], with zeros where a tile has more lanes than channels.
template <typename T>
void deform_conv2d_pack(const DeformConv2dParams<T>& p, const T* weight, T* packed, int64_t begin,
                        int64_t end) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t channels = p.channels / p.groups, out_channels = p.out_channels / p.groups;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t group = tile / group_tiles(p);
    const int64_t first = tile % group_tiles(p) * kTileColumns<T>;
    T* to = packed + tile * deform_conv2d_tile_size(p);
    const T* from = weight + (group * out_channels + first) * channels * taps;
    const int64_t lanes = min<int64_t>(kTileColumns<T>, out_channels - first);
    __builtin_memset(to, 0, deform_conv2d_tile_size(p) * sizeof(T));
    // A few lanes and channels at a time, for all taps, which lie between each other.
    constexpr int64_t kTile = kTransposeTile;
    for (int64_t lane = 0; lane < lanes; lane += kTile) {
      for (int64_t channel = 0; channel < channels; channel += kTile) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          transpose(from + (lane * channels + channel) * taps + tap, channels * taps, taps,
                    min(kTile, lanes - lane), min(kTile, channels - channel),
                    to + (tap * channels + channel) * kTileColumns<T> + lane, kTileColumns<T>);
        }
      }
    }
  }
}

template <typename T>
void deform_conv2d_forward(const DeformConv2dForward<T>& p, int64_t begin, int64_t end) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t pixels = p.out_height * p.out_width;
  const int64_t tiles = group_tiles(p), columns = num_columns(p);
  const int64_t sums_stride = tiles * kTileColumns<T>;
  Buffer<Sample<T>> samples(kBlockPixels * p.offset_groups * taps);
  Buffer<T> panel(kBlockPixels * kDepth), sums(kBlockPixels * sums_stride);
  for (int64_t pixel = begin, next; pixel < end; pixel = next) {
    const int64_t image = pixel / pixels, first = pixel % pixels;
    next = min(min((image + 1) * pixels, pixel + kBlockPixels), end);
    const int64_t count = next - pixel;
    const T* input = p.input + image * p.height * p.width * p.channels;
    for (int64_t i = 0; i < p.offset_groups * taps; ++i) {
      sample(p, image, i / taps, i % taps, first, count, samples + i * count);
    }
    for (int64_t group = 0; group < p.groups; ++group) {
      for (int64_t column = 0; column < columns; column += kDepth) {
        const int64_t depth = min(kDepth, columns - column);
        gather_columns<T>(p, input, group, samples, count, column, column + depth, panel);
        const T* weight = p.weight + (group * tiles * columns + column) * kTileColumns<T>;
        for (int64_t tile = 0; tile < tiles; ++tile) {
          multiply<T, kDepth, 1>({panel, weight + tile * columns * kTileColumns<T>,
                                  sums + tile * kTileColumns<T>, count, depth, kTileColumns<T>,
                                  sums_stride, column > 0});
        }
      }
      write<T>(p, image, group, first, count, sums, sums_stride);
    }
  }
}

#define FASTINST_INSTANTIATE(T)                                                                    \
  template void deform_conv2d_rows(const Image<const T>&, int64_t, int64_t, T*, int64_t, int64_t); \
  template int64_t deform_conv2d_weight_tiles(const DeformConv2dParams<T>&);                       \
  template int64_t deform_conv2d_tile_size(const DeformConv2dParams<T>&);                          \
  template void deform_conv2d_pack(const DeformConv2dParams<T>&, const T*, T*, int64_t, int64_t);  \
  template void deform_conv2d_forward(const DeformConv2dForward<T>&, int64_t, int64_t);
FASTINST_INSTANTIATE(float)
FASTINST_INSTANTIATE(double)

}  // namespace FASTINST_ISA
}  // namespace fastinst
