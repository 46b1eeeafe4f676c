#include "../kernels/read_out_masks.cuh"

#include <tuple>

#include "device.h"

namespace fastinst {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> read_out_masks(Tensor mask_logits, Sizes padded_size,
                                                          Sizes image_size, Sizes output_size,
                                                          bool packed) {
  const OnDevice device(mask_logits);
  const Tensor logits = torch::stable::contiguous(mask_logits);
  const ScalarType exact = accumulate_type(logits.scalar_type());
  const int64_t count = logits.size(0), height = output_size[0], width = output_size[1];
  const int64_t bands = ceil_div<int64_t>(height, kBandRows);
  const int64_t row_length = packed ? ceil_div<int64_t>(width, 32) : width;
  Tensor masks = torch::stable::new_empty(logits, {count, height, row_length},
                                          packed ? ScalarType::Int : ScalarType::Bool);
  Tensor scores = torch::stable::new_empty(logits, {count}, exact);
  Tensor areas = torch::stable::new_empty(logits, {count}, ScalarType::Long);
  Tensor boxes = torch::stable::new_empty(logits, {count, 4}, ScalarType::Long);

  dispatch(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::Type;
    using A = Accumulate<T>;
    const int64_t bytes = count * bands * int64_t(sizeof(Measure<A>));
    Tensor measures = torch::stable::new_empty(logits, {bytes}, ScalarType::Byte);
    launch_read_out<T>(
        {data<T>(logits),
         resize_between<A>(int(logits.size(1)), int(logits.size(2)), int(padded_size[0]),
                           int(padded_size[1])),
         resize_between<A>(int(image_size[0]), int(image_size[1]), int(height), int(width)),
         int(count), int(height), int(width), packed ? data<unsigned>(masks) : nullptr,
         packed ? nullptr : data<unsigned char>(masks), data<Measure<A>>(measures)},
        device.stream);
    launch_add_up<A>({data<Measure<A>>(measures), int(count), int(bands), data<A>(scores),
                      data<long long>(areas), data<long long>(boxes)},
                     device.stream);
  });
  return {masks, scores, areas, boxes};
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("read_out_masks", TORCH_BOX(&fastinst::read_out_masks));
}
