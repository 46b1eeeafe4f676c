#include "../kernels/select_queries.cuh"

#include <tuple>

#include "device.h"

namespace fastinst {
namespace {

constexpr size_t kStaticSharedBytes = 1 << 10;  // more than take_queries_kernel declares

// Elements are copied, whatever they are: calls function(TypeTag<T>()) with T of the same size.
template <typename Function>
void dispatch_by_size(int64_t element_size, Function&& function) {
  switch (element_size) {
    case 1: return function(TypeTag<unsigned char>());
    case 2: return function(TypeTag<unsigned short>());
    case 4: return function(TypeTag<unsigned>());
    default: return function(TypeTag<unsigned long long>());
  }
}

MapStrides strides_of(const Tensor& maps) {
  const bool one_for_all = maps.size(0) == 1;
  return {one_for_all ? 0 : maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3)};
}

Tensor find_candidates(const Tensor& logits, cudaStream_t stream) {
  const int64_t batch = logits.size(0), height = logits.size(2), width = logits.size(3);
  const ScalarType exact = accumulate_type(logits.scalar_type());
  Tensor candidates = torch::stable::new_empty(logits, {batch, height * width, 2}, exact);
  dispatch(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::Type;
    launch_find_candidates<T>({data<T>(logits), strides_of(logits), int(batch),
                               int(logits.size(1)), int(height), int(width),
                               data<Candidate<Accumulate<T>>>(candidates)},
                              stream);
  });
  return candidates;
}

template <typename A>
std::tuple<Tensor, Tensor, Tensor> take_queries(const Tensor& candidates, const Tensor& features,
                                                const Tensor& positions, int64_t count,
                                                bool local_maximum_first, cudaStream_t stream) {
  const int64_t batch = features.size(0), channels = features.size(1);
  const int height = int(features.size(2)), width = int(features.size(3));
  Tensor taken_features = torch::stable::new_empty(features, {batch, count, channels});
  Tensor taken_positions = torch::stable::new_empty(features, {batch, count, channels});
  Tensor indices = torch::stable::new_empty(features, {batch, count}, ScalarType::Long);
  std::optional<Tensor> ranks;
  if (rank_bytes<A>(height, width) + kStaticSharedBytes > size_t(maximum_shared_bytes())) {
    ranks = torch::stable::new_empty(candidates, {batch, features.size(2) * features.size(3)});
  }
  dispatch_by_size(features.element_size(), [&](auto type) {
    using Element = typename decltype(type)::Type;
    launch_take_queries<A, Element>(
        {data<Candidate<A>>(candidates), int(batch), height, width, local_maximum_first, int(count),
         int(channels), data<Element>(features), data<Element>(positions), strides_of(features),
         strides_of(positions), data<Element>(taken_features), data<Element>(taken_positions),
         data<long long>(indices), ranks ? ranks->data_ptr() : nullptr},
        stream);
  });
  return {taken_features, taken_positions, indices};
}

std::tuple<Tensor, Tensor, Tensor> select_queries(Tensor class_logits, Tensor features,
                                                  Tensor positions, int64_t num_queries,
                                                  bool local_maximum_first) {
  const OnDevice device(features);
  const Tensor candidates = find_candidates(class_logits, device.stream);
  const bool is_double = candidates.scalar_type() == ScalarType::Double;
  const auto take = is_double ? take_queries<double> : take_queries<float>;
  return take(candidates, features, positions, num_queries, local_maximum_first, device.stream);
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("select_queries", TORCH_BOX(&fastinst::select_queries));
}
