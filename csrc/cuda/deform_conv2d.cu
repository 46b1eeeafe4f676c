// Deformable convolution on CUDA devices: tensors in, tensors out. See csrc/kernels/deform_*.cuh.
//
// The kernels read images as [B, H, W, C] and weights as [C_out, kh, kw, C / groups]; what lies in
// memory as channels-last is read as it is. They compute in the image's dtype: 32-bit weights of a
// 16-bit image are rounded to it, as autocast rounds a convolution's; offsets, mask and bias may be
// 32-bit and are read so.

#include "../kernels/deform_conv2d_backward_data.cuh"
#include "../kernels/deform_conv2d_backward_weight.cuh"
#include "../kernels/deform_conv2d_forward.cuh"
#include "device.h"

#include <limits>
#include <tuple>

namespace fastinst {
namespace {

using torch::headeronly::MemoryFormat;

Tensor empty_image(const Tensor& like, const Sizes& sizes, ScalarType dtype, bool channels_last) {
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
}

Tensor to_channels_last(const Tensor& tensor, ScalarType dtype) {
  return aligned(torch::stable::contiguous(to_dtype(tensor, dtype), MemoryFormat::ChannelsLast));
}

ScalarType compute_type(const Tensor& input, const Tensor& weight) {
  const ScalarType image = input.scalar_type(), weights = weight.scalar_type();
  if (image == ScalarType::Double || weights == ScalarType::Double) return ScalarType::Double;
  const bool is_narrow = weights == image || weights == ScalarType::Float;
  if (image == ScalarType::Half && is_narrow) return image;
  if (image == ScalarType::BFloat16 && is_narrow && multiplies_bfloat16()) return image;
  return ScalarType::Float;
}

// The dtype itself or what it accumulates in, as MixedArray may hold.
ScalarType mixed_type(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? dtype : accumulate_type(dtype);
}

Tensor to_mixed(const Tensor& tensor, ScalarType dtype) {
  return to_dtype(tensor, mixed_type(tensor, dtype));
}

template <typename T>
MixedArray<T> mixed_array(const Tensor& tensor) {
  return {tensor.data_ptr(), tensor.element_size() == sizeof(Accumulate<T>)};
}

template <typename T>
PixelMaps<T> pixel_maps(const Tensor& tensor) {
  return {mixed_array<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          tensor.stride(3)};
}

int checked_int(int64_t value) {
  STD_TORCH_CHECK(value <= std::numeric_limits<int>::max(),
                  "deform_conv2d: a size of ", value, " is beyond 32 bits");
  return static_cast<int>(value);
}

DeformGeometry geometry_of(const Tensor& input, const Tensor& offset, const Tensor& weight,
                           const Sizes& stride, const Sizes& padding, const Sizes& dilation) {
  // Pixels and weights are counted in 32 bits.
  checked_int(input.size(0) * input.size(2) * input.size(3));
  checked_int(offset.size(0) * offset.size(2) * offset.size(3));
  checked_int(weight.numel());
  DeformGeometry geometry{};
  geometry.batch = input.size(0);
  geometry.channels = input.size(1);
  geometry.height = input.size(2);
  geometry.width = input.size(3);
  geometry.out_channels = weight.size(0);
  geometry.out_height = offset.size(2);
  geometry.out_width = offset.size(3);
  geometry.kernel_height = weight.size(2);
  geometry.kernel_width = weight.size(3);
  geometry.stride_y = checked_int(stride[0]);
  geometry.stride_x = checked_int(stride[1]);
  geometry.padding_y = checked_int(padding[0]);
  geometry.padding_x = checked_int(padding[1]);
  geometry.dilation_y = checked_int(dilation[0]);
  geometry.dilation_x = checked_int(dilation[1]);
  geometry.weight_groups = input.size(1) / weight.size(1);
  geometry.offset_groups = offset.size(1) / (2 * weight.size(2) * weight.size(3));
  geometry.complete();
  return geometry;
}

// What both passes read, in the kernels' dtypes and layouts.
template <typename T>
struct Arguments {
  Tensor input, offset, weight;
  std::optional<Tensor> mask;
  Sampling<T> sampling;

  Arguments(ScalarType dtype, const Tensor& input, const Tensor& offset, const Tensor& weight,
            const std::optional<Tensor>& mask, const DeformGeometry& geometry)
      : input(to_channels_last(input, dtype)),
        offset(to_mixed(offset, dtype)),
        weight(to_channels_last(weight, dtype)),
        sampling{geometry, pixel_maps<T>(this->offset), {}} {
    if (!mask.has_value()) return;
    this->mask = to_mixed(*mask, dtype);
    sampling.mask = pixel_maps<T>(*this->mask);
  }
};

Tensor deform_conv2d(const Tensor& input, const Tensor& offset, const Tensor& weight,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& mask,
                     const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                     bool relu) {
  const OnDevice device(input);
  const ScalarType dtype = compute_type(input, weight);
  const bool channels_last = is_channels_last(input);
  const Tensor output =
      empty_image(input, {input.size(0), weight.size(0), offset.size(2), offset.size(3)}, dtype,
                  channels_last);
  if (output.numel() == 0) return to_dtype(output, input.scalar_type());
  const auto geometry = geometry_of(input, offset, weight, stride, padding, dilation);
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const Arguments<T> arguments(dtype, input, offset, weight, mask, geometry);
    std::optional<Tensor> biases;
    if (bias.has_value()) biases = torch::stable::contiguous(to_mixed(*bias, dtype));
    const Tensor workspace = torch::stable::new_empty(
        input, {deform_forward_workspace<T>(geometry)}, accumulate_type(dtype));
    launch_deform_forward<T>({arguments.sampling,
                              data<T>(arguments.input),
                              data<T>(arguments.weight),
                              biases.has_value() ? mixed_array<T>(*biases) : MixedArray<T>{},
                              data<Accumulate<T>>(workspace),
                              data<T>(output),
                              channels_last,
                              relu},
                             device.stream);
  });
  return to_dtype(output, input.scalar_type());
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients deform_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                 const Tensor& weight, const std::optional<Tensor>& mask,
                                 const Sizes& stride, const Sizes& padding,
                                 const Sizes& dilation) {
  const OnDevice device(input);
  const ScalarType dtype = compute_type(input, weight), wide = accumulate_type(dtype);
  const auto gradient_of = [&](const Tensor& tensor) {
    return torch::stable::new_empty(tensor, tensor.sizes(), mixed_type(tensor, dtype));
  };
  Tensor grad_input = empty_image(
      input, {input.size(0), input.size(1), input.size(2), input.size(3)}, wide, true);
  Tensor grad_offset = gradient_of(offset), grad_weight = gradient_of(weight);
  Tensor grad_mask = mask.has_value() ? gradient_of(*mask) : torch::stable::new_empty(grad, {0});
  if (grad.numel() == 0) {
    for (Tensor* tensor : {&grad_input, &grad_offset, &grad_weight, &grad_mask}) {
      torch::stable::zero_(*tensor);
    }
  } else {
    const auto geometry = geometry_of(input, offset, weight, stride, padding, dilation);
    const Tensor out_grad = to_channels_last(grad, dtype);
    dispatch(dtype, [&](auto type) {
      using T = typename decltype(type)::Type;
      const Arguments<T> arguments(dtype, input, offset, weight, mask, geometry);
      launch_deform_backward_data<T>(
          {arguments.sampling,
           data<T>(out_grad),
           data<T>(arguments.input),
           data<T>(arguments.weight),
           data<Accumulate<T>>(grad_input),
           mixed_array<T>(grad_offset),
           mask.has_value() ? mixed_array<T>(grad_mask) : MixedArray<T>{}},
          device.stream);
      const Tensor workspace = torch::stable::new_empty(
          input, {deform_backward_weight_workspace<T>(geometry)}, wide);
      launch_deform_backward_weight<T>({arguments.sampling,
                                        data<T>(out_grad),
                                        data<T>(arguments.input),
                                        data<Accumulate<T>>(workspace),
                                        mixed_array<T>(grad_weight)},
                                       device.stream);
    });
  }
  grad_input = to_dtype(grad_input, input.scalar_type());
  const Sizes all_but_channels = {0, 2, 3};
  return {
      is_channels_last(input) ? grad_input : torch::stable::contiguous(grad_input),
      to_dtype(grad_offset, offset.scalar_type()),
      to_dtype(grad_weight, weight.scalar_type()),
      torch::stable::sum(grad, all_but_channels, false, wide),
      mask.has_value() ? to_dtype(grad_mask, mask->scalar_type()) : grad_mask,
  };
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
  m.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
}

}  // namespace fastinst
