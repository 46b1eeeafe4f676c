// Where a deformable convolution samples its input: the four pixels around each point and their
// bilinear weights, once for each output pixel, tap and offset group, whatever its channels.

#pragma once

#include "deform_conv2d.h"

namespace fastinst {
namespace FASTINST_ISA {

// One coordinate: the two pixels on either side, and their weights.
template <typename T>
struct Neighbours {
  int64_t pixels[2];
  T weights[2], slopes[2];
  bool inside;
};

template <typename T>
inline Neighbours<T> neighbours(T at, int64_t size) {
  Neighbours<T> n;
  n.inside = at > T(-1) && at < T(size);
  // Huge and non-finite coordinates, too, must become integers inside.
  const T bounded = !(at > T(-1)) ? T(-1) : at > T(size) ? T(size) : at;
  int64_t first = int64_t(bounded);
  if (T(first) > bounded) --first;
  const T fraction = bounded - T(first);
  for (int i = 0; i < 2; ++i) {
    const int64_t pixel = first + i;
    const bool valid = pixel >= 0 && pixel < size;
    n.pixels[i] = pixel < 0 ? 0 : pixel >= size ? size - 1 : pixel;
    n.weights[i] = valid ? (i == 0 ? 1 - fraction : fraction) : 0;
    n.slopes[i] = valid ? (i == 0 ? T(-1) : T(1)) : 0;
  }
  return n;
}

// Output pixels first ... first + count - 1 of an image, for one tap of one offset group.
template <typename T>
inline void sample(const DeformConv2dParams<T>& p, int64_t image, int64_t offset_group,
                   int64_t tap, int64_t first, int64_t count, Sample<T>* samples) {
  const int64_t taps = p.kernel_height * p.kernel_width;
  const int64_t pixels = p.out_height * p.out_width;
  const int64_t plane = ((image * p.offset_groups + offset_group) * taps + tap) * pixels + first;
  const T* offset_y = p.offset + 2 * plane - first;
  const T* offset_x = offset_y + pixels;
  const T* mask = p.mask == nullptr ? nullptr : p.mask + plane;
  const int64_t tap_y = tap / p.kernel_width * p.dilation[0] - p.padding[0];
  const int64_t tap_x = tap % p.kernel_width * p.dilation[1] - p.padding[1];
  int64_t out_y = first / p.out_width, out_x = first % p.out_width;
  for (int64_t i = 0; i < count; ++i) {
    const auto y = neighbours(T(out_y * p.stride[0] + tap_y) + offset_y[i], p.height);
    const auto x = neighbours(T(out_x * p.stride[1] + tap_x) + offset_x[i], p.width);
    const T inside = y.inside && x.inside ? 1 : 0;
    Sample<T>& s = samples[i];
    for (int j = 0; j < 2; ++j) {
      s.corners[j] = int32_t(y.pixels[0] * p.width + x.pixels[j]);
      s.corners[2 + j] = int32_t(y.pixels[1] * p.width + x.pixels[j]);
      s.weight_y[j] = inside * y.weights[j];
      s.weight_x[j] = inside * x.weights[j];
      s.slope_y[j] = inside * y.slopes[j];
      s.slope_x[j] = inside * x.slopes[j];
    }
    s.modulation = mask == nullptr ? T(1) : mask[i];
    if (++out_x == p.out_width) {
      out_x = 0;
      ++out_y;
    }
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
