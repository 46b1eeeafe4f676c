#include "kernels/masked_cross_attention.h"

#include <algorithm>

#include "attention.h"

namespace fastinst {
namespace {

// Rows of a mask that are worth a thread.
constexpr int64_t kGrainRows = 8;

// [B, words, Q] for attention(), which read no further than the last pixel.
std::vector<uint32_t> mask_bits(const Tensor& attend_, const Tensor& query, const Tensor& key) {
  const Tensor attend = last_contiguous(attend_);
  const int64_t num_queries = query.size(2), num_pixels = key.size(2);
  AttendParams params{};
  params.batch = attend.size(0);
  params.guided = attend.size(1);
  params.queries = num_queries;
  params.pixels = num_pixels;
  params.packed = attend.scalar_type() == ScalarType::Int;
  if (!params.packed) expect_dtype("attend", attend, ScalarType::Bool);
  expect_shape("attend", attend,
               {query.size(0), std::min(params.guided, num_queries),
                params.packed ? params.words() : num_pixels});
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
  const std::vector<uint32_t> bits = mask_bits(attend, query, key);
  return attention(query, key, value, bits.data());
}

std::tuple<Tensor, Tensor, Tensor> masked_cross_attention_backward(Tensor grad, Tensor output,
                                                                   Tensor query, Tensor key,
                                                                   Tensor value, Tensor attend) {
  const std::vector<uint32_t> bits = mask_bits(attend, query, key);
  return attention_gradients(grad, output, query, key, value, bits.data());
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("masked_cross_attention", TORCH_BOX(&fastinst::masked_cross_attention));
  m.impl("masked_cross_attention_backward", TORCH_BOX(&fastinst::masked_cross_attention_backward));
}
