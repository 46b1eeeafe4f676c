// Mask read-out: logits [h, w] resized bilinearly to the padded input, cropped, resized to the
// output, thresholded at 0, with the sum of sigmoids inside, the area and the box in the same pass.
//
// The two resizes are one linear map for each axis with at most 4 taps. A task is a band of rows of
// one mask. It first resizes along x, but only the few rows of logits that the band reads, so that
// what needs indexed loads is a small part; then each row of the mask is a sum of 2 or 3 (at most
// 4) contiguous rows that lie in the cache. Rows and columns that read no positive logit are not
// computed: no weight is negative.
//
// The masks are the definition's, bit for bit. Composed, a value differs from the definition's by
// rounding only, so its sign is certain beyond a bound; within it (some 10 pixels in a million) the
// value is computed again in the definition's own order, with its own roundings.

#include "read_out_masks.h"

#include "bits.h"
#include "lanes.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

using namespace read_out;

template <typename T>
constexpr T kEpsilon = sizeof(T) == 8 ? T(0x1p-52) : T(0x1p-23);
template <typename T>
constexpr T kSmallest = sizeof(T) == 8 ? T(0x1p-1022) : T(0x1p-126f);  // normal number
template <typename T>
constexpr T kHuge = sizeof(T) == 8 ? T(0x1p1022) : T(0x1p126f);  // sums may overflow from here

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

// a * b + c * d. The products are volatile, or the compiler would fuse what must not be.
template <typename T>
T mix(T a, T b, T c, T d, Rounding rounding) {
  volatile T second = c * d;
  if (rounding == Rounding::kFirstFused) return fused(a, b, second);
  volatile T first = a * b;
  if (rounding == Rounding::kSecondFused) return fused(c, d, first);
  return first + second;
}

template <typename T>
T add_product(T sum, T a, T b, Rounding rounding) {
  if (rounding != Rounding::kEach) return fused(a, b, sum);
  volatile T product = a * b;
  return sum + product;
}

// PyTorch's bilinear interpolation between four values at (row, column).
template <typename T>
T between(T p00, T p01, T p10, T p11, const Pair<T>& y, const Pair<T>& x, bool four_products,
          Rounding rounding) {
  if (four_products) {
    T sum = mix(p00, y.first_weight * x.first_weight, p01, y.first_weight * x.second_weight,
                rounding);
    sum = add_product(sum, p10, y.second_weight * x.first_weight, rounding);
    return add_product(sum, p11, y.second_weight * x.second_weight, rounding);
  }
  const T upper = mix(p00, x.first_weight, p01, x.second_weight, rounding);
  const T lower = mix(p10, x.first_weight, p11, x.second_weight, rounding);
  return mix(upper, y.first_weight, lower, y.second_weight, rounding);
}

template <typename T>
SourceRow<T> describe(const T* row, int width) {
  SourceRow<T> source{0, width, 0};
  T poison = 0;
  for (int x = 0; x < width; ++x) {
    const T magnitude = row[x] < 0 ? -row[x] : row[x];
    source.magnitude = magnitude > source.magnitude ? magnitude : source.magnitude;
    poison += row[x] * 0;  // NaN if one is not finite
    if (!(row[x] <= 0) || poison != 0) {
      source.begin = x < source.begin ? x : source.begin;
      source.end = x + 1;
    }
  }
  if (poison != 0 || source.magnitude > kHuge<T>) source.magnitude = T(__builtin_inf());
  return source;
}

// One row of logits resized along x.
template <typename T>
void resize_columns(const Params<T>& params, const T* row, T* __restrict__ resized) {
  const int width = params.output_width;
  const int* index = params.column_index;
  const T* weight = params.column_weight;
  for (int x = 0; x < width; ++x) resized[x] = weight[x] * row[index[x]];
  for (int tap = 1; tap < params.column_taps; ++tap) {
    index += width;
    weight += width;
    for (int x = 0; x < width; ++x) resized[x] += weight[x] * row[index[x]];
  }
}

// values = sum of kCount weighted rows; inside where they are positive. Returns whether a value
// lies within `bound` of 0.
template <int kCount, typename T>
bool combine(const RowTaps<T>& taps, const T* const rows[4], int begin, int end, T bound,
             T* __restrict__ values, uint8_t* __restrict__ inside) {
  int uncertain = 0;
  for (int x = begin; x < end; ++x) {
    T value = taps.weight[0] * rows[0][x];
    if (kCount > 1) value += taps.weight[1] * rows[1][x];
    if (kCount > 2) value += taps.weight[2] * rows[2][x];
    if (kCount > 3) value += taps.weight[3] * rows[3][x];
    values[x] = value;
    inside[x] = value > 0;
    uncertain |= !(value > bound) & !(value < -bound);
  }
  return uncertain;
}

template <typename T>
bool combine(const RowTaps<T>& taps, const T* const rows[4], int begin, int end, T bound,
             T* values, uint8_t* inside) {
  switch (taps.count) {
    case 1: return combine<1>(taps, rows, begin, end, bound, values, inside);
    case 2: return combine<2>(taps, rows, begin, end, bound, values, inside);
    case 3: return combine<3>(taps, rows, begin, end, bound, values, inside);
    default: return combine<4>(taps, rows, begin, end, bound, values, inside);
  }
}

// Replaces the uncertain values by exact ones. Returns their sum's NaN, or 0.
template <typename T>
double settle(const Params<T>& params, const T* logits, int row, int begin, int end, T bound,
              T* values, uint8_t* inside) {
  double poison = 0;
  for (int x = begin; x < end; ++x) {
    if (values[x] > bound || values[x] < -bound) continue;
    values[x] = interpolated_twice(params, logits, row, x);
    inside[x] = values[x] > 0;
    if (values[x] != values[x]) poison = values[x];
  }
  return poison;
}

// Of the positive values. From `end` on to a full vector there must be zeros.
template <typename T>
T sum_of_sigmoids(const T* values, int begin, int end) {
  Vec<T> total{};
  for (int x = begin; x < end; x += kLanes<T>) {
    const Vec<T> value = load(values + x);
    if (lane_bits(value > 0) == 0) continue;
    const Vec<T> sigmoid = 1 / (1 + exp2(value * T(-1.4426950408889634)));  // log2 e
    total += value > 0 ? sigmoid : Vec<T>{};
  }
  return sum(total);
}

// `inside` must be zeros from the width on, to a multiple of 64.
void pack(const uint8_t* inside, int words, uint32_t* packed) {
  for (int word = 0; word < words; word += 2) {
    const uint64_t bits = bits_of(inside + 32 * word);
    packed[word] = uint32_t(bits);
    if (word + 1 < words) packed[word + 1] = uint32_t(bits >> 32);
  }
}

}  // namespace

template <typename T>
T interpolated_twice(const Params<T>& params, const T* logits, int row, int column) {
  const Pair<T>& y = params.to_output.rows[row];
  const Pair<T>& x = params.to_output.columns[column];
  const auto padded = [&](int padded_row, int padded_column) {
    const Resize<T>& resize = params.to_padded;
    const Pair<T>& y = resize.rows[padded_row];
    const Pair<T>& x = resize.columns[padded_column];
    const T* upper = logits + int64_t(y.first) * params.width;
    const T* lower = logits + int64_t(y.second) * params.width;
    return between(upper[x.first], upper[x.second], lower[x.first], lower[x.second], y, x,
                   resize.four_products, params.rounding);
  };
  return between(padded(y.first, x.first), padded(y.first, x.second), padded(y.second, x.first),
                 padded(y.second, x.second), y, x, params.to_output.four_products,
                 params.rounding);
}

template <typename T>
void read_out_band(const Params<T>& params, int64_t mask, int row_begin, int row_end,
                   const Scratch<T>& scratch, Band* band) {
  const T* logits = params.logits + mask * params.height * params.width;
  const int width = params.output_width;
  int first_source = params.height, last_source = 0;
  for (int row = row_begin; row < row_end; ++row) {
    const RowTaps<T>& taps = params.row_taps[row];
    for (int tap = 0; tap < taps.count; ++tap) {
      first_source = taps.index[tap] < first_source ? taps.index[tap] : first_source;
      last_source = taps.index[tap] > last_source ? taps.index[tap] : last_source;
    }
  }
  for (int source = first_source; source <= last_source; ++source) {
    const T* row = logits + int64_t(source) * params.width;
    scratch.sources[source - first_source] = describe(row, params.width);
    resize_columns(params, row, scratch.resized + (source - first_source) * scratch.stride);
  }

  *band = {0, 0, width, params.output_height, 0, 0};
  __builtin_memset(scratch.columns, 0, width);
  for (int row = row_begin; row < row_end; ++row) {
    const RowTaps<T>& taps = params.row_taps[row];
    const T* rows[4];
    SourceRow<T> read{0, params.width, 0};
    for (int tap = 0; tap < taps.count; ++tap) {
      const SourceRow<T>& source = scratch.sources[taps.index[tap] - first_source];
      rows[tap] = scratch.resized + (taps.index[tap] - first_source) * scratch.stride;
      read.magnitude = source.magnitude > read.magnitude ? source.magnitude : read.magnitude;
      read.begin = source.begin < read.begin ? source.begin : read.begin;
      read.end = source.end > read.end ? source.end : read.end;
    }
    const int64_t output_row = mask * params.output_height + row;
    uint8_t* inside = scratch.inside;
    int begin = 0, end = 0;
    if (read.begin < read.end) {
      begin = params.reach_begin[read.begin];
      end = params.reach_end[read.end - 1];
    }
    __builtin_memset(inside, 0, scratch.stride);
    if (begin < end) {
      // The definition's value is at most 10 roundings of half an epsilon from what its weights
      // say, a composed one at most 16; the last term is for what is lost below the normal numbers.
      const T bound = 16 * kEpsilon<T> * read.magnitude + 64 * kSmallest<T>;
      if (combine(taps, rows, begin, end, bound, scratch.values, inside)) {
        band->inside +=
            settle(params, logits, row, begin, end, bound, scratch.values, inside);
      }
      int area = 0;
      for (int x = begin; x < end; ++x) area += inside[x];
      if (area > 0) {
        for (int x = begin; x < end; ++x) scratch.columns[x] |= inside[x];
        __builtin_memset(scratch.values + end, 0, kPadding);
        band->inside += sum_of_sigmoids(scratch.values, begin, end);
        band->area += area;
        band->top = row < band->top ? row : band->top;
        band->bottom = row + 1;
      }
    }
    if (params.packed) {
      pack(inside, params.words,
           static_cast<uint32_t*>(params.masks) + output_row * params.words);
    } else {
      __builtin_memcpy(static_cast<uint8_t*>(params.masks) + output_row * width, inside, width);
    }
  }
  for (int x = 0; x < width; ++x) {
    if (!scratch.columns[x]) continue;
    band->left = x < band->left ? x : band->left;
    band->right = x + 1;
  }
}

#define INSTANTIATE(T)                                                                     \
  template void read_out_band<T>(const Params<T>&, int64_t, int, int, const Scratch<T>&, Band*); \
  template T interpolated_twice<T>(const Params<T>&, const T*, int, int);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace FASTINST_ISA
}  // namespace fastinst
