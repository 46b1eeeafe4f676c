// Where a deformable convolution samples its image. Output pixel (b, y, x), tap (k_y, k_x) and
// offset group g look at
//
//     (y s_y - p_y + k_y d_y + dy,  x s_x - p_x + k_x d_x + dx)
//
// between four pixels of image b, the corners, with zeros outside of the image; corner c of 0..3 is
// the one below if c / 2, the one to the right if c % 2. All channels of an offset group look
// there, so this is worked out once for them, in Accumulate<T>, and the channels of a corner, which
// lie side by side ([B, H, W, C]), are fetched 16 bytes at a time.
#pragma once

#include <cuda_pipeline.h>

#include "common.cuh"
#include "deform_geometry.cuh"

namespace fastinst {

// An array of T or of Accumulate<T>: what comes beside the image may be wider than the image.
template <typename T>
struct MixedArray {
  void* data;
  bool is_wide;

  // In two steps, so that what comes between them need not wait for memory: what lies there, in the
  // bits of an Accumulate<T>, and its value.
  __device__ __forceinline__ Accumulate<T> fetch(int64_t index) const {
    if constexpr (sizeof(T) == 2) {
      if (!is_wide) return __uint_as_float(static_cast<const unsigned short*>(data)[index]);
    }
    return static_cast<const Accumulate<T>*>(data)[index];
  }
  __device__ __forceinline__ Accumulate<T> value(Accumulate<T> fetched) const {
    if constexpr (sizeof(T) == 2) {
      if (is_wide) return fetched;
      const unsigned bits = __float_as_uint(fetched);
      T narrow;
      memcpy(&narrow, &bits, sizeof(T));  // the lower half: GPUs are little-endian
      return widen(narrow);
    } else {
      return fetched;
    }
  }

  __device__ __forceinline__ Accumulate<T> load(int64_t index) const { return value(fetch(index)); }
  __device__ __forceinline__ void store(int64_t index, Accumulate<T> value) const {
    if (is_wide) {
      static_cast<Accumulate<T>*>(data)[index] = value;
    } else {
      static_cast<T*>(data)[index] = narrow<T>(value);
    }
  }
};

struct OutputPixel {
  int image, y, x;  // image is -1 for what lies beyond the last pixel

  static __device__ __forceinline__ OutputPixel at(const DeformGeometry& geometry, int pixel) {
    if (pixel >= geometry.pixels) return {-1, 0, 0};
    const int row = pixel / geometry.out_width;
    return {row / geometry.out_height, row % geometry.out_height,
            pixel - row * geometry.out_width};
  }
};

// [B, maps, h, w] with any strides.
template <typename T>
struct PixelMaps {
  MixedArray<T> values;
  int64_t image_stride, map_stride, y_stride, x_stride;

  __device__ __forceinline__ Accumulate<T> fetch(const OutputPixel& pixel, int map) const {
    return values.fetch(pixel.image * image_stride + map * map_stride + pixel.y * y_stride +
                        pixel.x * x_stride);
  }
};

template <typename Scalar>
struct Corner {
  int pixel;  // in [B, H, W], or -1 if it lies outside and has no weight
  Scalar weight, weight_dy, weight_dx;  // and its derivatives by y and x
};

template <typename T>
struct Sampling {
  using Scalar = Accumulate<T>;
  struct Fetched {
    Scalar dy, dx, modulation;
  };

  DeformGeometry geometry;
  PixelMaps<T> offset;  // map 2 (g taps + k) is dy, the next one dx
  PixelMaps<T> mask;    // map g taps + k; null data for none

  __device__ __forceinline__ Fetched fetch(const OutputPixel& pixel, int tap, int group) const {
    if (pixel.image < 0) return {0, 0, 0};
    const int map = group * geometry.taps + tap;
    const bool has_mask = mask.values.data != nullptr;
    return {offset.fetch(pixel, 2 * map), offset.fetch(pixel, 2 * map + 1),
            has_mask ? mask.fetch(pixel, map) : 0};
  }

  __device__ __forceinline__ Scalar modulation(const Fetched& fetched) const {
    return mask.values.data == nullptr ? Scalar(1) : mask.values.value(fetched.modulation);
  }

  __device__ __forceinline__ Corner<Scalar> corner(const OutputPixel& pixel, int tap,
                                                   const Fetched& fetched, int index) const {
    if (pixel.image < 0) return {-1, 0, 0, 0};
    const int tap_y = tap / geometry.kernel_width, tap_x = tap % geometry.kernel_width;
    const Scalar y = Scalar(pixel.y * geometry.stride_y - geometry.padding_y +
                            tap_y * geometry.dilation_y) + offset.values.value(fetched.dy);
    const Scalar x = Scalar(pixel.x * geometry.stride_x - geometry.padding_x +
                            tap_x * geometry.dilation_x) + offset.values.value(fetched.dx);
    // Also false for what is not a number.
    if (!(y > -1 && y < geometry.height && x > -1 && x < geometry.width)) return {-1, 0, 0, 0};
    const Scalar top = floor(y), left = floor(x);
    const Scalar fraction_y = y - top, fraction_x = x - left;
    const bool below = index / 2 == 1, right = index % 2 == 1;
    const int row = static_cast<int>(top) + below, column = static_cast<int>(left) + right;
    if (row < 0 || row >= geometry.height || column < 0 || column >= geometry.width) {
      return {-1, 0, 0, 0};
    }
    const Scalar weight_y = below ? fraction_y : 1 - fraction_y;
    const Scalar weight_x = right ? fraction_x : 1 - fraction_x;
    return {(pixel.image * geometry.height + row) * geometry.width + column, weight_y * weight_x,
            below ? weight_x : -weight_x, right ? weight_y : -weight_y};
  }
};

// A vector from memory, of which the first `count` values exist; zeros stand for the others.
// kWhole says that always all exist or none, at a multiple of 16 bytes.
template <bool kWhole, typename T>
__device__ __forceinline__ Packed<T> load_channels(const T* source, int count) {
  if (kWhole && count > 0) return Packed<T>::load_constant(source);
  Packed<T> values;
#pragma unroll
  for (int i = 0; i < Packed<T>::kSize; ++i) {
    values[i] = !kWhole && i < count ? source[i] : narrow<T>(0);
  }
  return values;
}

// The same into shared memory, not waiting for it: __pipeline_commit and _wait_prior do.
template <bool kWhole, typename T>
__device__ __forceinline__ void copy_channels(T* target, const T* source, int count) {
  if (kWhole && count > 0) {
    __pipeline_memcpy_async(target, source, sizeof(Packed<T>));
  } else {
    load_channels<kWhole>(source, count).store(target);
  }
}

// Where kRows columns come from: their corners, and the weights of these, modulated.
template <typename T, int kRows>
struct GatherPlan {
  alignas(16) int pixels[kRows][4];
  alignas(16) Accumulate<T> weights[kRows][4];

  __device__ __forceinline__ void set(const Sampling<T>& sampling, int row, int index,
                                      const OutputPixel& pixel, int tap,
                                      const typename Sampling<T>::Fetched& fetched) {
    const auto corner = sampling.corner(pixel, tap, fetched, index);
    pixels[row][index] = corner.pixel;
    weights[row][index] = corner.weight * sampling.modulation(fetched);
  }
};

// Four neighbouring lanes gather 64 bytes of a column, 16 bytes each.
template <typename T>
class ColumnGather {
 public:
  static constexpr int kLanes = 4;
  static constexpr int kChannels = kLanes * Packed<T>::kSize;

  // Starts the loads of a lane's vector, of which `count` channels exist. `source` is where it is
  // in pixel 0.
  template <bool kWhole>
  __device__ __forceinline__ void load(const int (&pixels)[4], const T* source, int channels,
                                       int count) {
    const Packed<int> corners = Packed<int>::load(pixels);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int pixel = corners[corner];
      values_[corner] =
          load_channels<kWhole>(source + int64_t(pixel) * channels, pixel < 0 ? 0 : count);
    }
  }

  // What was loaded, interpolated and modulated in Accumulate<T>.
  __device__ __forceinline__ Packed<T> blend(const Accumulate<T> (&weights)[4]) {
    Accumulate<T> sums[Packed<T>::kSize] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      widen_from_here_on(values_[corner]);
#pragma unroll
      for (int i = 0; i < Packed<T>::kSize; ++i) {
        sums[i] += weights[corner] * widen(values_[corner][i]);
      }
    }
    Packed<T> column;
#pragma unroll
    for (int i = 0; i < Packed<T>::kSize; ++i) column[i] = narrow<T>(sums[i]);
    return column;
  }

 private:
  // The compiler would widen 16-bit values as they arrive, and hold them in twice the registers
  // while the tile before is multiplied.
  static __device__ __forceinline__ void widen_from_here_on([[maybe_unused]] Packed<T>& values) {
#ifdef __CUDACC__
    int4& bits = reinterpret_cast<int4&>(values);
    asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
#endif
  }

  Packed<T> values_[4];
};

}  // namespace fastinst
