#include "../kernels/uncertain_points.cuh"

#include "device.h"

namespace fastinst {
namespace {

Tensor uncertain_points(Tensor logits, Tensor seeds, int64_t num_points, int64_t num_candidates,
                        int64_t num_important) {
  const OnDevice device(logits);
  expect_dtype("seeds", seeds, ScalarType::Long);
  expect_shape("seeds", seeds, {logits.size(0)});
  logits = torch::stable::contiguous(logits);
  seeds = torch::stable::contiguous(seeds);
  const int64_t maps = logits.size(0);
  const int height = int(logits.size(1)), width = int(logits.size(2));
  const Tensor chosen =
      torch::stable::new_empty(logits, {maps, num_points, 2}, ScalarType::Float);
  const size_t limit = size_t(maximum_shared_bytes()) - kSelectStaticBytes;
  dispatch(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::Type;
    using Key = typename UncertainPointsParams<T>::Key;
    const size_t map_bytes = shared_map_bytes<T>(height, width);
    const bool copy_map = map_bytes <= limit;
    const size_t left = copy_map ? limit - map_bytes : limit;
    std::optional<Tensor> keys;
    if (shared_key_bytes<T>(int(num_candidates)) > left) {
      const ScalarType integer = sizeof(Key) == 8 ? ScalarType::Long : ScalarType::Int;
      keys = torch::stable::new_empty(logits, {maps, num_candidates}, integer);
    }
    launch_uncertain_points<T>(
        {data<T>(logits), data<long long>(seeds), int(maps), height, width, int(num_points),
         int(num_candidates), int(num_important), copy_map, keys ? data<Key>(*keys) : nullptr,
         data<Point<float>>(chosen)},
        device.stream);
  });
  return chosen;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("uncertain_points", TORCH_BOX(&fastinst::uncertain_points));
}
