// Deformable convolution on the CPU: tensors in, tensors out.
//
// The kernels compute in float32 or float64. 16-bit tensors are converted before and after: next to
// the products that is cheap, and it saves a third and a fourth instance of every kernel.

#include "../common.h"
#include "kernels/deform_conv2d.h"

#include <algorithm>
#include <tuple>

namespace fastinst {
namespace {

using torch::headeronly::MemoryFormat;
using torch::stable::parallel_for;

Tensor empty_image(const Sizes& sizes, ScalarType dtype, bool channels_last) {
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt, format);
}

// In that dtype, and contiguous in either memory format.
Tensor to_image(const Tensor& tensor, ScalarType dtype) {
  const Tensor converted = to_dtype(tensor, dtype);
  return is_channels_last(converted) ? converted : torch::stable::contiguous(converted);
}

Tensor to_contiguous(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(to_dtype(tensor, dtype));
}

template <typename T>
Image<T> image_of(const Tensor& tensor) {
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  T* data = static_cast<T*>(tensor.data_ptr());
  if (is_channels_last(tensor)) return {data, channels * pixels, 1, channels};
  return {data, channels * pixels, pixels, 1};
}

// What is computed in: promote(input, weight, float32).
ScalarType compute_type(const Tensor& input, const Tensor& weight) {
  const bool is_double = input.scalar_type() == ScalarType::Double ||
                         weight.scalar_type() == ScalarType::Double;
  return is_double ? ScalarType::Double : ScalarType::Float;
}

void check(const Tensor& input, const Tensor& offset, const Tensor& weight,
           const std::optional<Tensor>& mask, const Sizes& stride, const Sizes& padding,
           const Sizes& dilation) {
  const int64_t channels = input.size(1), taps = weight.size(2) * weight.size(3);
  STD_TORCH_CHECK(input.size(2) * input.size(3) > 0, "input must have pixels to sample");
  STD_TORCH_CHECK(weight.size(1) > 0 && channels > 0 && channels % weight.size(1) == 0 &&
                      weight.size(0) % (channels / weight.size(1)) == 0,
                  "weight does not fit the channels of input");
  const int64_t offset_groups = taps == 0 ? 0 : offset.size(1) / (2 * taps);
  STD_TORCH_CHECK(offset_groups > 0 && channels % offset_groups == 0,
                  "offset does not fit the channels of input");
  const int64_t height = offset.size(2), width = offset.size(3);
  expect_shape("offset", offset, {input.size(0), 2 * offset_groups * taps, height, width});
  if (mask.has_value()) {
    expect_shape("mask", *mask, {input.size(0), offset_groups * taps, height, width});
  }
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
                  "stride, padding and dilation must be two numbers each");
}

// The tensors that both passes read, converted, and what else there is to tell about them.
template <typename T>
struct Arguments {
  Tensor input, offset, weight;
  std::optional<Tensor> mask;
  DeformConv2dParams<T> params;

  Arguments(ScalarType dtype, const Tensor& input, const Tensor& offset, const Tensor& weight,
            const std::optional<Tensor>& mask, const Sizes& stride, const Sizes& padding,
            const Sizes& dilation)
      : input(to_image(input, dtype)),
        offset(to_contiguous(offset, dtype)),
        weight(to_contiguous(weight, dtype)) {
    if (mask.has_value()) this->mask = to_contiguous(*mask, dtype);
    params.batch = input.size(0);
    params.channels = input.size(1);
    params.height = input.size(2);
    params.width = input.size(3);
    params.out_channels = weight.size(0);
    params.out_height = offset.size(2);
    params.out_width = offset.size(3);
    params.kernel_height = weight.size(2);
    params.kernel_width = weight.size(3);
    std::copy_n(stride.begin(), 2, params.stride);
    std::copy_n(padding.begin(), 2, params.padding);
    std::copy_n(dilation.begin(), 2, params.dilation);
    params.groups = input.size(1) / weight.size(1);
    params.offset_groups = offset.size(1) / (2 * weight.size(2) * weight.size(3));
    params.offset = static_cast<const T*>(this->offset.const_data_ptr());
    params.mask = mask.has_value() ? static_cast<const T*>(this->mask->const_data_ptr()) : nullptr;
  }
};

// [batch, pixels, channels]: the tensor itself if that is how it lies in memory.
template <typename T>
Tensor to_rows(const Tensor& tensor) {
  if (is_channels_last(tensor)) return tensor;
  const Tensor rows = torch::stable::new_empty(tensor, {tensor.numel()});
  const Image<const T> image = image_of<const T>(tensor);
  const int64_t channels = tensor.size(1), pixels = tensor.size(2) * tensor.size(3);
  T* data = static_cast<T*>(rows.mutable_data_ptr());
  parallel_for(0, tensor.size(0) * pixels, 128, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(deform_conv2d_rows<T>, image, channels, pixels, data, begin, end);
  });
  return rows;
}

template <typename T>
void forward(const Arguments<T>& arguments, const std::optional<Tensor>& bias, bool relu,
             const Tensor& output) {
  const Tensor rows = to_rows<T>(arguments.input);
  const DeformConv2dParams<T>& params = arguments.params;
  const int64_t tiles = FASTINST_CALL(deform_conv2d_weight_tiles<T>, params);
  const int64_t tile_size = FASTINST_CALL(deform_conv2d_tile_size<T>, params);
  const Tensor packed = torch::stable::new_empty(arguments.weight, {tiles * tile_size});
  parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(deform_conv2d_pack<T>, params,
                  static_cast<const T*>(arguments.weight.const_data_ptr()),
                  static_cast<T*>(packed.mutable_data_ptr()), begin, end);
  });
  const DeformConv2dForward<T> forward_params{
      params,
      static_cast<const T*>(rows.const_data_ptr()),
      static_cast<const T*>(packed.const_data_ptr()),
      bias.has_value() ? static_cast<const T*>(bias->const_data_ptr()) : nullptr,
      relu,
      image_of<T>(output),
  };
  const int64_t pixels = params.batch * params.out_height * params.out_width;
  parallel_for(0, pixels, 16, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(deform_conv2d_forward<T>, forward_params, begin, end);
  });
}

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     bool relu) {
  check(input, offset, weight, mask, stride, padding, dilation);
  if (bias.has_value()) expect_shape("bias", *bias, {weight.size(0)});
  const ScalarType dtype = compute_type(input, weight);
  const Tensor output =
      empty_image({input.size(0), weight.size(0), offset.size(2), offset.size(3)}, dtype,
                  is_channels_last(input));
  if (output.numel() > 0) {
    std::optional<Tensor> converted_bias;
    if (bias.has_value()) converted_bias = to_contiguous(*bias, dtype);
    const auto run = [&](auto zero) {
      forward<decltype(zero)>(
          {dtype, input, offset, weight, mask, stride, padding, dilation}, converted_bias, relu,
          output);
    };
    dtype == ScalarType::Double ? run(0.0) : run(0.0f);
  }
  return to_dtype(output, input.scalar_type());
}

// Slices of channels that lie in one weight group, one offset group, and one tile.
struct Slice {
  int64_t first, channels, offset_group;
};

template <typename T>
std::vector<Slice> slices_of(const DeformConv2dParams<T>& params) {
  const int64_t most = FASTINST_CALL(deform_conv2d_slice<T>);
  const int64_t group = params.channels / params.groups;
  const int64_t offset_group = params.channels / params.offset_groups;
  std::vector<Slice> slices;
  for (int64_t first = 0; first < params.channels;) {
    const int64_t channels = std::min(
        {most, group - first % group, offset_group - first % offset_group});
    slices.push_back({first, channels, first / offset_group});
    first += channels;
  }
  return slices;
}

// total[batch, offset_group, size] from shares [slice, batch, size], in the slices' order.
template <typename T>
Tensor sum_shares(const std::vector<Slice>& slices, const Tensor& shares, const Tensor& like,
                  int64_t offset_groups) {
  const Tensor total = torch::stable::new_zeros(shares, like.sizes());
  const int64_t batch = shares.size(1), size = shares.size(2);
  T* to = static_cast<T*>(total.mutable_data_ptr());
  const T* from = static_cast<const T*>(shares.const_data_ptr());
  parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      for (size_t slice = 0; slice < slices.size(); ++slice) {
        T* sum = to + (image * offset_groups + slices[slice].offset_group) * size;
        const T* share = from + (slice * batch + image) * size;
        for (int64_t i = 0; i < size; ++i) sum[i] += share[i];
      }
    }
  });
  return to_dtype(total, like.scalar_type());
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename T>
Gradients backward(const Arguments<T>& arguments, const Tensor& grad, const Tensor& input,
                   const Tensor& offset, const Tensor& weight, const std::optional<Tensor>& mask) {
  const DeformConv2dParams<T>& params = arguments.params;
  const int64_t taps = params.kernel_height * params.kernel_width;
  const int64_t pixels = params.out_height * params.out_width;
  const int64_t num_samples = params.batch * params.offset_groups * taps * pixels;
  const Tensor samples = torch::stable::new_empty(
      arguments.input, {num_samples * int64_t(sizeof(Sample<T>))}, ScalarType::Byte);
  Sample<T>* first_sample = static_cast<Sample<T>*>(samples.mutable_data_ptr());
  parallel_for(0, num_samples, 1024, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(deform_conv2d_samples<T>, params, first_sample, begin, end);
  });

  const Tensor grad_input =
      empty_image({params.batch, params.channels, params.height, params.width},
                  arguments.input.scalar_type(), is_channels_last(input));
  const Tensor grad_weight = torch::stable::empty_like(arguments.weight);
  const std::vector<Slice> slices = slices_of(params);
  const int64_t num_slices = int64_t(slices.size());
  const Tensor offset_shares =
      torch::stable::new_empty(grad, {num_slices, params.batch, 2 * taps * pixels});
  const Tensor mask_shares = torch::stable::new_empty(
      grad, {num_slices, params.batch, mask.has_value() ? taps * pixels : 0});
  const Tensor grad_rows = to_rows<T>(grad);
  const DeformConv2dBackward<T> backward_params{
      params,
      first_sample,
      static_cast<const T*>(grad_rows.const_data_ptr()),
      static_cast<const T*>(arguments.weight.const_data_ptr()),
      image_of<const T>(arguments.input),
      image_of<T>(grad_input),
      static_cast<T*>(grad_weight.mutable_data_ptr()),
  };
  parallel_for(0, num_slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t start = slice * params.batch * taps * pixels;
      FASTINST_CALL(deform_conv2d_backward<T>, backward_params, slices[slice].first,
                    slices[slice].channels,
                    static_cast<T*>(offset_shares.mutable_data_ptr()) + 2 * start,
                    mask.has_value() ? static_cast<T*>(mask_shares.mutable_data_ptr()) + start
                                     : nullptr);
    }
  });
  const Sizes all_but_channels = {0, 2, 3};
  return {
      to_dtype(grad_input, input.scalar_type()),
      sum_shares<T>(slices, offset_shares, offset, params.offset_groups),
      to_dtype(grad_weight, weight.scalar_type()),
      torch::stable::sum(grad, all_but_channels),
      mask.has_value() ? sum_shares<T>(slices, mask_shares, *mask, params.offset_groups)
                       : torch::stable::new_empty(grad, {0}),
  };
}

Gradients deform_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                 const Tensor& weight, const std::optional<Tensor>& mask,
                                 const Sizes& stride, const Sizes& padding,
                                 const Sizes& dilation) {
  check(input, offset, weight, mask, stride, padding, dilation);
  expect_shape("grad", grad, {input.size(0), weight.size(0), offset.size(2), offset.size(3)});
  const ScalarType dtype = compute_type(input, weight);
  const auto run = [&](auto zero) {
    return backward<decltype(zero)>(
        {dtype, input, offset, weight, mask, stride, padding, dilation}, to_image(grad, dtype),
        input, offset, weight, mask);
  };
  return dtype == ScalarType::Double ? run(0.0) : run(0.0f);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace fastinst
