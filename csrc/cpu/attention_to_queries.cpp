#include "attention.h"

namespace fastinst {
namespace {

Tensor attention_to_queries(Tensor query, Tensor key, Tensor value) {
  return attention(query, key, value, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> attention_to_queries_backward(Tensor grad, Tensor output,
                                                                 Tensor query, Tensor key,
                                                                 Tensor value) {
  return attention_gradients(grad, output, query, key, value, nullptr);
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("attention_to_queries", TORCH_BOX(&fastinst::attention_to_queries));
  m.impl("attention_to_queries_backward", TORCH_BOX(&fastinst::attention_to_queries_backward));
}
