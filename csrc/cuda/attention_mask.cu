#include "../kernels/attention_mask.cuh"

#include "attention.h"

namespace fastinst {
namespace {

Tensor attention_mask(Tensor embeddings, Tensor pixels, std::optional<Tensor> bias) {
  const OnDevice device(embeddings);
  const int64_t batch = embeddings.size(0), queries = embeddings.size(1), length = pixels.size(1);
  Tensor bits = torch::stable::new_empty(
      embeddings, {batch, queries, ceil_div<int64_t>(length, kTileColumns)}, ScalarType::Int);
  if (bits.numel() == 0) return bits;
  const bool lacks = embeddings.scalar_type() == ScalarType::BFloat16 && !multiplies_bfloat16();
  const ScalarType type = lacks ? ScalarType::Float : embeddings.scalar_type();
  // As the tokens of one head.
  const auto prepared = [&](const Tensor& x) {
    return torch::stable::unsqueeze(in_vectors(to_dtype(x, type)), 1);
  };
  const Tensor rows = prepared(embeddings), columns = prepared(pixels);
  if (bias) bias = torch::stable::contiguous(to_dtype(*bias, type));
  dispatch(type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    launch_attention_mask<T>({static_cast<int>(batch), static_cast<int>(rows.size(3)),
                              heads_of<T>(rows), heads_of<T>(columns),
                              bias ? data<T>(*bias) : nullptr, data<unsigned>(bits)},
                             device.stream);
  });
  return bits;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("attention_mask", TORCH_BOX(&fastinst::attention_mask));
}
