#include "kernels/attention_mask.h"

#include "../common.h"
#include "float_type.h"
#include "tasks.h"

namespace fastinst {
namespace {

Tensor attention_mask(Tensor embeddings_, Tensor pixels_, std::optional<Tensor> bias_) {
  const Tensor embeddings = last_contiguous(embeddings_), pixels = last_contiguous(pixels_);
  AttentionMaskParams params{};
  params.type = float_type(embeddings);
  params.batch = embeddings.size(0);
  params.queries = embeddings.size(1);
  params.pixels = pixels.size(1);
  params.channels = embeddings.size(2);
  STD_TORCH_CHECK(params.channels > 0, "embeddings must have channels");
  expect_shape("pixels", pixels, {params.batch, params.pixels, params.channels});
  expect_dtype("pixels", pixels, embeddings.scalar_type());
  params.embeddings = embeddings.data_ptr();
  params.embeddings_batch_stride = embeddings.stride(0);
  params.embedding_stride = embeddings.stride(1);
  params.features = pixels.data_ptr();
  params.features_batch_stride = pixels.stride(0);
  params.feature_stride = pixels.stride(1);
  Tensor bias;
  if (bias_) {
    expect_shape("bias", *bias_, {params.batch, params.queries});
    const ScalarType exact = accumulate_type(embeddings.scalar_type());
    bias = torch::stable::contiguous(to_dtype(*bias_, exact));
    params.bias = bias.data_ptr();
  }
  Tensor bits = torch::stable::new_empty(
      embeddings, {params.batch, params.queries, params.words()}, ScalarType::Int);
  if (bits.numel() == 0) return bits;
  params.bits = static_cast<uint32_t*>(bits.data_ptr());
  for_each_task(params.batch * params.tasks_per_image(), [&](int64_t task) {
    FASTINST_CALL(attention_mask_task, params, task);
  });
  return bits;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("attention_mask", TORCH_BOX(&fastinst::attention_mask));
}
