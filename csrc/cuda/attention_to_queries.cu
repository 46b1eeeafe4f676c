#include "attention.h"

namespace fastinst {
namespace {

Tensor attention_to_queries(Tensor query, Tensor key, Tensor value) {
  const OnDevice device(query);
  return attention(query, key, value, Attend{}, device.stream);
}

std::tuple<Tensor, Tensor, Tensor> attention_to_queries_backward(Tensor grad, Tensor output,
                                                                 Tensor query, Tensor key,
                                                                 Tensor value) {
  const OnDevice device(query);
  return attention_gradient(grad, output, query, key, value, Attend{}, device.stream);
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("attention_to_queries", TORCH_BOX(&fastinst::attention_to_queries));
  m.impl("attention_to_queries_backward", TORCH_BOX(&fastinst::attention_to_queries_backward));
}
