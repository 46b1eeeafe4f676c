// Mask read-out on the CPU: what each axis reads through the two resizes, bands of rows as tasks,
// and the sums of their results.

#include "kernels/read_out_masks.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <tuple>

#include "../common.h"

namespace fastinst {
namespace {

using namespace read_out;

// Small enough that the rows of logits a band reads stay in the first cache once resized, large
// enough that few are resized for two bands.
constexpr int64_t kBandRows = 64;

// F.interpolate multiplies the weights first if the output's height and width sum to at most 128.
bool four_products(const Sizes& output) { return output[0] + output[1] <= 128; }

// What PyTorch's compiler fused: in torch 2.15 the products of both ways to multiply, but where to
// read only of the one with four products.
struct TorchRounding {
  Rounding products;
  bool fused_source[2];  // scale * center - 0.5, without and with four products

  bool fuses_source(const Sizes& output) const { return fused_source[four_products(output)]; }
};

// Where F.interpolate(mode="bilinear", align_corners=False) reads, with its roundings.
template <typename T>
std::vector<Pair<T>> resize_axis(int64_t input, int64_t output, bool fused_source) {
  std::vector<Pair<T>> axis(output);
  const T scale = T(input) / T(output);
  for (int64_t i = 0; i < output; ++i) {
    if (input == output) {
      axis[i] = {int(i), int(i), 1, 0};
      continue;
    }
    const T center = T(i) + T(0.5);
    volatile T product = scale * center;  // volatile: never fused with the subtraction
    const T source = fused_source ? std::fma(scale, center, T(-0.5)) : product - T(0.5);
    const T inside = std::max(source, T(0));
    // PyTorch's floor is float32's also for float64, where that can round up to the next pixel.
    const int first = int(std::min(int64_t(std::floor(float(inside))), input - 1));
    const T weight = std::min(std::max(inside - T(first), T(0)), T(1));
    axis[i] = {first, first + (first < input - 1), T(1) - weight, weight};
  }
  return axis;
}

// One axis through both resizes.
template <typename T>
struct Axis {
  std::vector<Pair<T>> to_padded, to_output;
  std::vector<RowTaps<T>> taps;

  Axis(int dim, const Sizes& input, const Sizes& padded, const Sizes& image, const Sizes& output,
       const TorchRounding& rounding)
      : to_padded(resize_axis<T>(input[dim], padded[dim], rounding.fuses_source(padded))),
        to_output(resize_axis<T>(image[dim], output[dim], rounding.fuses_source(output))) {
    for (const Pair<T>& outer : to_output) {
      RowTaps<T> composed{};
      add(composed, to_padded[outer.first], outer.first_weight);
      add(composed, to_padded[outer.second], outer.second_weight);
      taps.push_back(composed);
    }
  }

  static void add(RowTaps<T>& taps, const Pair<T>& pair, T weight) {
    add(taps, pair.first, pair.first_weight * weight);
    add(taps, pair.second, pair.second_weight * weight);
  }

  static void add(RowTaps<T>& taps, int index, T weight) {
    int tap = 0;
    while (tap < taps.count && taps.index[tap] != index) ++tap;
    taps.index[tap] = index;
    taps.weight[tap] += weight;
    taps.count = std::max(taps.count, tap + 1);
  }
};

// Everything that depends on the sizes alone, and parameters that point to it.
template <typename T>
class Plan {
 public:
  Plan(const T* logits, const Sizes& input, const Sizes& padded, const Sizes& image,
       const Sizes& output, const TorchRounding& rounding)
      : rows_(0, input, padded, image, output, rounding),
        columns_(1, input, padded, image, output, rounding),
        params{} {
    params.logits = logits;
    params.height = int(input[0]), params.width = int(input[1]);
    params.output_height = int(output[0]), params.output_width = int(output[1]);
    params.to_padded = {rows_.to_padded.data(), columns_.to_padded.data(), four_products(padded)};
    params.to_output = {rows_.to_output.data(), columns_.to_output.data(), four_products(output)};
    params.rounding = rounding.products;
    params.row_taps = rows_.taps.data();
    transpose_columns();
    find_reach();
  }

  Plan(const Plan&) = delete;

 private:
  void transpose_columns() {
    const int width = params.output_width;
    for (const RowTaps<T>& taps : columns_.taps) {
      params.column_taps = std::max(params.column_taps, taps.count);
    }
    for (int tap = 0; tap < params.column_taps; ++tap) {
      for (int x = 0; x < width; ++x) {
        const RowTaps<T>& taps = columns_.taps[x];
        index_.push_back(taps.index[std::min(tap, taps.count - 1)]);
        weight_.push_back(tap < taps.count ? taps.weight[tap] : T(0));
      }
    }
    params.column_index = index_.data();
    params.column_weight = weight_.data();
  }

  void find_reach() {
    reach_begin_.assign(params.width, params.output_width);
    reach_end_.assign(params.width, 0);
    for (int x = 0; x < params.output_width; ++x) {
      const RowTaps<T>& taps = columns_.taps[x];
      for (int tap = 0; tap < taps.count; ++tap) {
        const int source = taps.index[tap];
        reach_begin_[source] = std::min(reach_begin_[source], x);
        reach_end_[source] = std::max(reach_end_[source], x + 1);
      }
    }
    for (int source = params.width - 1; source > 0; --source) {
      reach_begin_[source - 1] = std::min(reach_begin_[source - 1], reach_begin_[source]);
    }
    for (int source = 1; source < params.width; ++source) {
      reach_end_[source] = std::max(reach_end_[source], reach_end_[source - 1]);
    }
    params.reach_begin = reach_begin_.data();
    params.reach_end = reach_end_.data();
  }

  Axis<T> rows_, columns_;
  std::vector<int> index_, reach_begin_, reach_end_;
  std::vector<T> weight_;

 public:
  Params<T> params;
};

// What PyTorch itself makes of [1, 1, h, w].
Tensor torch_resize(const Tensor& logits, const Sizes& size) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(logits), torch::stable::detail::from(std::optional(size)),
      torch::stable::detail::from(false), torch::stable::detail::from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::upsample_bilinear2d", "vec", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// PyTorch fuses products into sums or not as its compiler pleased, and chooses among several
// compilations when it starts. So a small image is resized with and without four products, and
// what agrees is taken.
template <typename T>
TorchRounding torch_rounding(const Tensor& like) {
  const Sizes input{5, 7}, padded{29, 31}, output{59, 127};
  std::array<T, 35> values;
  for (size_t i = 0; i < values.size(); ++i) values[i] = T(std::sin(double(7 * i + 1)));
  Tensor logits = torch::stable::new_empty(like, {1, 1, input[0], input[1]});
  std::copy(values.begin(), values.end(), static_cast<T*>(logits.data_ptr()));
  const Tensor resized = torch_resize(torch_resize(logits, padded), output);
  const T* expected = static_cast<const T*>(resized.data_ptr());
  for (int choice = 0; choice < 3 * 2 * 2; ++choice) {
    const TorchRounding rounding{Rounding(choice / 4), {choice / 2 % 2 == 1, choice % 2 == 1}};
    const Plan<T> plan(values.data(), input, padded, padded, output, rounding);
    bool equal = true;
    for (int64_t i = 0; equal && i < output[0] * output[1]; ++i) {
      equal = expected[i] == FASTINST_CALL(interpolated_twice<T>, plan.params, values.data(),
                                           int(i / output[1]), int(i % output[1]));
    }
    if (equal) return rounding;
  }
  std::fprintf(stderr, "fastinst: this torch resizes with a rounding unknown to the mask read-out; a "
                       "pixel whose logit is nearly 0 may differ from plain PyTorch's\n");
  return {Rounding::kEach, {false, false}};
}

template <typename T>
Scratch<T> scratch_memory(int64_t width, int64_t sources) {
  const int64_t stride = (width + 2 * kPadding - 1) / kPadding * kPadding;
  thread_local std::vector<SourceRow<T>> described;
  thread_local std::vector<T> values;
  thread_local std::vector<uint8_t> bytes;
  described.resize(sources);
  values.resize((sources + 1) * stride);
  bytes.resize(2 * stride);
  return {stride,        described.data(), values.data() + stride,
          values.data(), bytes.data(),     bytes.data() + stride};
}

template <typename T>
void read_out(const Tensor& mask_logits, const Sizes& padded_size, const Sizes& image_size,
              const Sizes& output_size, Tensor& masks, Tensor& scores, Tensor& areas,
              Tensor& boxes) {
  static const TorchRounding rounding = torch_rounding<T>(mask_logits);
  Plan<T> plan(static_cast<const T*>(mask_logits.data_ptr()),
               {mask_logits.size(1), mask_logits.size(2)}, padded_size, image_size, output_size,
               rounding);
  plan.params.packed = masks.scalar_type() == ScalarType::Int;
  plan.params.masks = masks.data_ptr();
  plan.params.words = int((output_size[1] + 31) / 32);

  const int64_t count = mask_logits.size(0), height = output_size[0];
  const int64_t bands = (height + kBandRows - 1) / kBandRows;
  std::vector<Band> results(count * bands);
  torch::stable::parallel_for(0, count * bands, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch = scratch_memory<T>(output_size[1], mask_logits.size(1));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t mask = task / bands, row = task % bands * kBandRows;
      FASTINST_CALL(read_out_band<T>, plan.params, mask, int(row),
                    int(std::min(row + kBandRows, height)), scratch, &results[task]);
    }
  });

  for (int64_t mask = 0; mask < count; ++mask) {
    Band whole{0, 0, int(output_size[1]), int(height), 0, 0};
    for (int64_t band = mask * bands; band < (mask + 1) * bands; ++band) {
      const Band& part = results[band];
      whole.inside += part.inside;
      whole.area += part.area;
      whole.left = std::min(whole.left, part.left);
      whole.top = std::min(whole.top, part.top);
      whole.right = std::max(whole.right, part.right);
      whole.bottom = std::max(whole.bottom, part.bottom);
    }
    if (whole.area == 0) whole.left = whole.top = 0;
    static_cast<T*>(scores.data_ptr())[mask] = T(whole.inside) / (T(whole.area) + T(1e-6));
    static_cast<int64_t*>(areas.data_ptr())[mask] = whole.area;
    int64_t* box = static_cast<int64_t*>(boxes.data_ptr()) + 4 * mask;
    box[0] = whole.left, box[1] = whole.top, box[2] = whole.right, box[3] = whole.bottom;
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> read_out_masks(Tensor mask_logits, Sizes padded_size,
                                                          Sizes image_size, Sizes output_size,
                                                          bool packed) {
  for (const Sizes& size : {padded_size, image_size, output_size}) {
    STD_TORCH_CHECK(size.size() == 2 && std::min(size[0], size[1]) > 0,
                    "sizes must be (height, width) of at least 1");
  }
  STD_TORCH_CHECK(image_size[0] <= padded_size[0] && image_size[1] <= padded_size[1],
                  "image_size must not be larger than padded_size");
  STD_TORCH_CHECK(mask_logits.size(1) > 0 && mask_logits.size(2) > 0,
                  "mask_logits must have pixels");
  const ScalarType exact = accumulate_type(mask_logits.scalar_type());
  const Tensor logits = torch::stable::contiguous(to_dtype(mask_logits, exact));
  const int64_t count = logits.size(0), height = output_size[0], width = output_size[1];
  Tensor masks =
      packed ? torch::stable::new_empty(logits, {count, height, (width + 31) / 32}, ScalarType::Int)
             : torch::stable::new_empty(logits, {count, height, width}, ScalarType::Bool);
  Tensor scores = torch::stable::new_empty(logits, {count});
  Tensor areas = torch::stable::new_empty(logits, {count}, ScalarType::Long);
  Tensor boxes = torch::stable::new_empty(logits, {count, 4}, ScalarType::Long);
  const auto run = exact == ScalarType::Double ? read_out<double> : read_out<float>;
  run(logits, padded_size, image_size, output_size, masks, scores, areas, boxes);
  return {masks, scores, areas, boxes};
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("read_out_masks", TORCH_BOX(&fastinst::read_out_masks));
}
