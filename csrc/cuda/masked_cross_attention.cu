#include "../kernels/masked_cross_attention.cuh"

#include "attention.h"

namespace fastinst {
namespace {

// The bits of a mask, made if it is bool, and which queries have one.
class Survey {
 public:
  Survey(const Tensor& attend, int64_t pixels, cudaStream_t stream) {
    const int64_t batch = attend.size(0), queries = attend.size(1);
    if (attend.numel() == 0) return;
    const bool is_bool = attend.scalar_type() == ScalarType::Bool;
    const int64_t words = ceil_div<int64_t>(pixels, kWarpSize);
    bits_ = is_bool ? torch::stable::new_empty(attend, {batch, queries, words}, ScalarType::Int)
                    : torch::stable::contiguous(attend);
    guided_ = torch::stable::new_empty(attend, {batch, queries}, ScalarType::Byte);
    launch_survey({is_bool ? data<bool>(attend) : nullptr, attend.stride(0), attend.stride(1),
                   attend.stride(2), data<unsigned>(*bits_), data<unsigned char>(*guided_),
                   static_cast<int>(batch), static_cast<int>(queries), static_cast<int>(pixels)},
                  stream);
    attend_ = {data<unsigned>(*bits_), data<unsigned char>(*guided_), static_cast<int>(queries),
               static_cast<int>(words)};
  }

  const Attend& attend() const { return attend_; }

 private:
  std::optional<Tensor> bits_, guided_;
  Attend attend_{};
};

Tensor masked_cross_attention(Tensor query, Tensor key, Tensor value, Tensor attend) {
  const OnDevice device(query);
  const Survey survey(attend, key.size(2), device.stream);
  return attention(query, key, value, survey.attend(), device.stream);
}

std::tuple<Tensor, Tensor, Tensor> masked_cross_attention_backward(Tensor grad, Tensor output,
                                                                   Tensor query, Tensor key,
                                                                   Tensor value, Tensor attend) {
  const OnDevice device(query);
  const Survey survey(attend, key.size(2), device.stream);
  return attention_gradient(grad, output, query, key, value, survey.attend(), device.stream);
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("masked_cross_attention", TORCH_BOX(&fastinst::masked_cross_attention));
  m.impl("masked_cross_attention_backward", TORCH_BOX(&fastinst::masked_cross_attention_backward));
}
