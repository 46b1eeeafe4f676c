// Mask read-out: logits [N, height, width] resized bilinearly to the padded input, cropped to the
// image, resized to the output, thresholded at 0; with the sum of the sigmoids inside, the area and
// the box of each mask. fastinst/ops/read_out_masks.py defines it.
//
// A block owns kBandRows rows of a mask, a thread some of its columns. Both resizes together make a
// pixel three weighted rows of three weighted columns (two_resizes.cuh): the thread walks down its
// columns with the three current rows of logits, already resized along x, in registers, so that
// most pixels cost three multiplications. A band that reads no positive logit has no pixel, for no
// weight is negative: it is not computed.
//
// The masks are the definition's, bit for bit: where the sum is nearer to 0 than its bound (some 10
// pixels in a million), the value is computed again as PyTorch's CUDA kernel computes it.
//
// What bands measure goes to memory, and a second launch adds it up: a fixed order of the sum.
#pragma once

#include "common.cuh"
#include "launch.cuh"
#include "two_resizes.cuh"

namespace fastinst {

// Of the pixels of one band of one mask; right and bottom are exclusive, and 0 if there are none.
template <typename A>
struct Measure {
  A inside;  // sum of sigmoids
  int area, left, top, right, bottom;
};

template <typename T>
struct ReadOutParams {
  using A = Accumulate<T>;
  const T* logits;  // [count, to_padded.rows.size, to_padded.columns.size]
  Resize<A> to_padded, to_output;
  int count, height, width;  // of the masks
  unsigned* words;      // [count, height, ceil(width / 32)], or null
  unsigned char* masks;  // [count, height, width], or null
  Measure<A>* measures;  // [count, bands]
};

template <typename A>
struct AddUpParams {
  const Measure<A>* measures;  // [count, bands]
  int count, bands;
  A* scores;         // [count]
  long long* areas;  // [count]
  long long* boxes;  // [count, 4]
};

constexpr int kBandRows = 16;

namespace {

constexpr int kReadOutThreads = 128;
constexpr int kReadOutBlocks = 8;  // 32 warps hide the latency of the logits; 64 registers suffice

template <typename T>
__device__ __forceinline__ Accumulate<T> resized_twice(const ReadOutParams<T>& params,
                                                       const T* logits, int row, int column) {
  const int width = params.to_padded.columns.size;
  const auto logit = [&](int y, int x) { return widen(logits[y * width + x]); };
  const auto padded = [&](int y, int x) { return resized(params.to_padded, y, x, logit); };
  return resized(params.to_output, row, column, padded);
}

template <typename A>
__device__ __forceinline__ Measure<A> joined(const Measure<A>& one, const Measure<A>& other) {
  return {one.inside + other.inside,     one.area + other.area,
          min(one.left, other.left),     min(one.top, other.top),
          max(one.right, other.right),   max(one.bottom, other.bottom)};
}

template <typename A>
__device__ __forceinline__ Measure<A> no_pixel() {
  return {0, 0, 0x7fffffff, 0x7fffffff, 0, 0};
}

template <typename A>
__device__ __forceinline__ Measure<A> joined_over_warp(const Measure<A>& measure) {
  return {warp_reduce(measure.inside, Sum()),    warp_reduce(measure.area, Sum()),
          warp_reduce(measure.left, Minimum()),  warp_reduce(measure.top, Minimum()),
          warp_reduce(measure.right, Maximum()), warp_reduce(measure.bottom, Maximum())};
}

// Whether one of `size` values is positive; and their largest absolute value, infinity with a NaN.
template <typename T>
__device__ __forceinline__ bool any_positive(const T* values, int size, Accumulate<T>* magnitude,
                                             Accumulate<T>* scratch) {
  using A = Accumulate<T>;
  A largest = 0;
  bool positive = false, has_nan = false;
  for (int i = threadIdx.x; i < size; i += kReadOutThreads) {
    const A value = widen(values[i]), absolute = value < A(0) ? -value : value;
    largest = Maximum()(largest, absolute);
    positive |= value > A(0);
    has_nan |= value != value;
  }
  *magnitude = block_reduce<kReadOutThreads>(has_nan ? infinity<A>() : largest, Maximum(), scratch);
  return __syncthreads_or(positive);
}

// The pixels of a band as bits, [kBandRows, words]. Returns the thread's sum of sigmoids.
template <typename T>
__device__ __forceinline__ Accumulate<T> threshold_band(const ReadOutParams<T>& params,
                                                        const T* logits, int band_row, int rows,
                                                        const Taps<Accumulate<T>>* row_taps,
                                                        Accumulate<T> bound, unsigned* bits) {
  using A = Accumulate<T>;
  const int logit_width = params.to_padded.columns.size;
  const int last_row = params.to_padded.rows.size - 1;
  const int words = ceil_div(params.width, 32), lane = threadIdx.x % kWarpSize;
  A inside = 0;
  for (int word = threadIdx.x / kWarpSize; word < words; word += kReadOutThreads / kWarpSize) {
    // The last word's surplus lanes repeat the last column, for they have ballots to reach.
    const int column = min(32 * word + lane, params.width - 1);
    const bool counts = 32 * word + lane < params.width;
    const Taps<A> x = taps_at(params.to_padded.columns, params.to_output.columns, column);
    const int second = min(x.first + 1, logit_width - 1);
    const int third = min(x.first + 2, logit_width - 1);
    const auto along_x = [&](int row) {
      const T* source = logits + min(row, last_row) * logit_width;
      return x.weights[0] * widen(source[x.first]) + x.weights[1] * widen(source[second]) +
             x.weights[2] * widen(source[third]);
    };

    int first = row_taps[0].first;
    A upper = along_x(first), middle = along_x(first + 1), lower = along_x(first + 2);
    for (int row = 0; row < rows; ++row) {
      const Taps<A> y = row_taps[row];
      for (; first < y.first; ++first) {
        upper = middle;
        middle = lower;
        lower = along_x(first + 3);
      }
      A value = y.weights[0] * upper + y.weights[1] * middle + y.weights[2] * lower;
      if (!(abs(value) > bound)) value = resized_twice(params, logits, band_row + row, column);
      const bool positive = counts && value > A(0);
      if (positive) inside += A(1) / (A(1) + exp(-value));
      const unsigned ballot = __ballot_sync(kFullWarp, positive);
      if (lane == 0) bits[row * words + word] = ballot;
    }
  }
  return inside;
}

// Area and box of a band's bits, the thread's share of them.
template <typename A>
__device__ __forceinline__ Measure<A> measured(const unsigned* bits, int band_row, int rows,
                                               int words) {
  Measure<A> measure = no_pixel<A>();
  for (int i = threadIdx.x; i < rows * words; i += kReadOutThreads) {
    if (bits[i] == 0) continue;
    const int row = band_row + i / words, first_column = i % words * 32;
    measure = joined(measure, {0, __popc(bits[i]), first_column + __ffs(bits[i]) - 1, row,
                               first_column + 32 - __clz(bits[i]), row + 1});
  }
  return measure;
}

// Four bits to four bytes of 0 or 1.
__device__ __forceinline__ unsigned bytes_of(unsigned bits) {
  return (bits & 0xfu) * 0x00204081u & 0x01010101u;
}

// The band's rows lie side by side in memory, whichever form the masks have.
template <typename T>
__device__ __forceinline__ void write_band(const ReadOutParams<T>& params, int mask, int band_row,
                                           int rows, const unsigned* bits) {
  const int width = params.width, words = ceil_div(width, 32);
  const long long first_row = static_cast<long long>(mask) * params.height + band_row;
  if (params.words != nullptr) {
    unsigned* target = params.words + first_row * words;
    for (int i = threadIdx.x; i < rows * words; i += kReadOutThreads) target[i] = bits[i];
    return;
  }
  unsigned char* target = params.masks + first_row * width;
  if (width % 16 == 0) {
    const int vectors = width / 16;
    for (int i = threadIdx.x; i < rows * vectors; i += kReadOutThreads) {
      // i = (row, vector); a word has two of them
      const int vector = i % vectors;
      const unsigned own = bits[i / vectors * words + vector / 2] >> vector % 2 * 16;
      reinterpret_cast<uint4*>(target)[i] =
          make_uint4(bytes_of(own), bytes_of(own >> 4), bytes_of(own >> 8), bytes_of(own >> 12));
    }
  } else {
    for (int i = threadIdx.x; i < rows * width; i += kReadOutThreads) {
      const int row = i / width, column = i % width;
      target[i] = bits[row * words + column / 32] >> column % 32 & 1u;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kReadOutThreads, kReadOutBlocks)
read_out_kernel(ReadOutParams<T> params) {
  using A = Accumulate<T>;
  __shared__ A scratch[kReadOutThreads / kWarpSize];
  __shared__ Taps<A> row_taps[kBandRows];
  __shared__ Measure<A> warp_measures[kReadOutThreads / kWarpSize];
  unsigned* bits = shared_memory<unsigned>();  // [kBandRows, words]

  const int bands = ceil_div(params.height, kBandRows);
  const int mask = blockIdx.x / bands, band_row = blockIdx.x % bands * kBandRows;
  const int rows = min(kBandRows, params.height - band_row);
  const int words = ceil_div(params.width, 32);
  const Resize<A>& to_padded = params.to_padded;
  const Resize<A>& to_output = params.to_output;
  const int logit_width = to_padded.columns.size;
  const T* logits =
      params.logits + static_cast<long long>(mask) * to_padded.rows.size * logit_width;
  if (threadIdx.x < rows) {
    row_taps[threadIdx.x] = taps_at(to_padded.rows, to_output.rows, band_row + threadIdx.x);
  }
  for (int i = threadIdx.x; i < rows * words; i += kReadOutThreads) bits[i] = 0;
  __syncthreads();

  const int first = row_taps[0].first;
  const int last_padded = pair_at(to_output.rows, band_row + rows - 1).second;
  const int last = pair_at(to_padded.rows, last_padded).second;
  A magnitude, inside = 0;
  if (any_positive(logits + first * logit_width, (last + 1 - first) * logit_width, &magnitude,
                   scratch)) {
    inside = threshold_band(params, logits, band_row, rows, row_taps, uncertainty(magnitude), bits);
    __syncthreads();
  }
  write_band(params, mask, band_row, rows, bits);

  Measure<A> measure = measured<A>(bits, band_row, rows, words);
  measure.inside = inside;
  measure = joined_over_warp(measure);
  if (threadIdx.x % kWarpSize == 0) warp_measures[threadIdx.x / kWarpSize] = measure;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kReadOutThreads / kWarpSize; ++warp) {
      measure = joined(measure, warp_measures[warp]);
    }
    params.measures[blockIdx.x] = measure;
  }
}

// A warp adds up the bands of a mask.
template <typename A>
__global__ void __launch_bounds__(kWarpSize) add_up_kernel(AddUpParams<A> params) {
  const int mask = blockIdx.x;
  Measure<A> measure = no_pixel<A>();
  for (int band = threadIdx.x; band < params.bands; band += kWarpSize) {
    measure = joined(measure, params.measures[mask * params.bands + band]);
  }
  measure = joined_over_warp(measure);
  if (threadIdx.x != 0) return;
  if (measure.area == 0) measure.left = measure.top = 0;
  params.scores[mask] = measure.inside / (measure.area + A(1e-6));
  params.areas[mask] = measure.area;
  params.boxes[4 * mask] = measure.left;
  params.boxes[4 * mask + 1] = measure.top;
  params.boxes[4 * mask + 2] = measure.right;
  params.boxes[4 * mask + 3] = measure.bottom;
}

}  // namespace

#ifndef __CUDACC_RTC__

template <typename T>
void launch_read_out(const ReadOutParams<T>& params, cudaStream_t stream) {
  const int blocks = params.count * ceil_div(params.height, kBandRows);
  const size_t shared = sizeof(unsigned) * kBandRows * ceil_div(params.width, 32);
  launch(read_out_kernel<T>, blocks, kReadOutThreads, shared, stream, params);
}

template <typename A>
void launch_add_up(const AddUpParams<A>& params, cudaStream_t stream) {
  launch(add_up_kernel<A>, params.count, kWarpSize, 0, stream, params);
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
