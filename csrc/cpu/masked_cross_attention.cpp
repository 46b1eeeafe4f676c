#include "kernels/masked_cross_attention.h"

#include "attention.h"

namespace fastinst {
namespace {

// Rows of a mask that are worth a thread.
constexpr int64_t kGrainRows = 8;

// [B, words, Q] for attention(), which read no further than the last pixel.
std::vector<uint32_t> mask_bits(const Tensor& attend_, int64_t num_queries, int64_t num_pixels) {
  const Tensor attend = last_contiguous(attend_);
  AttendParams params{};
  params.batch = attend.size(0);
  params.guided = attend.size(1);
  params.queries = num_queries;
  params.pixels = num_pixels;
  params.packed = attend.scalar_type() == ScalarType::Int;
  params.attend = attend.data_ptr();
  params.batch_stride = attend.stride(0);
  params.query_stride = attend.stride(1);
  std::vector<uint32_t> bits(params.batch * params.words() * num_queries);
  params.bits = bits.data();
  torch::stable::parallel_for(0, params.batch * num_queries, kGrainRows,
                              [&](int64_t begin, int64_t end) {
                                FASTINST_CALL(attend_bits, params, begin, end);
                              });
  return bits;
}

Tensor masked_cross_attention(Tensor query, Tensor key, Tensor value, Tensor attend) {
  const std::vector<uint32_t> bits = mask_bits(attend, query.size(2), key.size(2));
  return attention(query, key, value, bits.data());
}

std::tuple<Tensor, Tensor, Tensor> masked_cross_attention_backward(Tensor grad, Tensor output,
                                                                   Tensor query, Tensor key,
                                                                   Tensor value, Tensor attend) {
  const std::vector<uint32_t> bits = mask_bits(attend, query.size(2), key.size(2));
  return attention_gradients(grad, output, query, key, value, bits.data());
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("masked_cross_attention", TORCH_BOX(&fastinst::masked_cross_attention));
  m.impl("masked_cross_attention_backward", TORCH_BOX(&fastinst::masked_cross_attention_backward));
}
