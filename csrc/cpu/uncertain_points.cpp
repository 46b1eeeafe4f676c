// Points chosen by importance, on the CPU: maps as tasks.

#include "kernels/uncertain_points.h"

#include <algorithm>

#include "../common.h"

namespace fastinst {
namespace {

using namespace uncertain_points;

constexpr int64_t kLargest = int64_t(1) << 28;  // numbers of pixels and points fit in 32 bits

template <typename T>
void choose(const Tensor& logits, const Tensor& seeds, int64_t candidates, int64_t important,
            Tensor& chosen) {
  const Params<T> params{static_cast<const T*>(logits.data_ptr()),
                         int(logits.size(1)),
                         int(logits.size(2)),
                         static_cast<const int64_t*>(seeds.data_ptr()),
                         int(chosen.size(1)),
                         int(candidates),
                         int(important),
                         static_cast<float*>(chosen.data_ptr())};
  torch::stable::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(choose_points<T>, params, begin, end);
  });
}

Tensor uncertain_points_cpu(Tensor logits, Tensor seeds, int64_t num_points,
                            int64_t num_candidates, int64_t num_important) {
  STD_TORCH_CHECK(logits.dim() == 3 && logits.size(1) > 0 && logits.size(2) > 0 &&
                      logits.size(1) * logits.size(2) < kLargest,
                  "logits must have pixels, and fewer than 2^28");
  STD_TORCH_CHECK(num_important >= 0 && num_important <= std::min(num_points, num_candidates) &&
                      std::max(num_points, num_candidates) < kLargest,
                  "num_important must be in 0..min(num_points, num_candidates)");
  expect_dtype("seeds", seeds, ScalarType::Long);
  expect_shape("seeds", seeds, {logits.size(0)});
  const ScalarType exact = accumulate_type(logits.scalar_type());
  const Tensor maps = torch::stable::contiguous(to_dtype(logits, exact));
  Tensor chosen =
      torch::stable::new_empty(maps, {maps.size(0), num_points, 2}, ScalarType::Float);
  const auto run = exact == ScalarType::Double ? choose<double> : choose<float>;
  run(maps, torch::stable::contiguous(seeds), num_candidates, num_important, chosen);
  return chosen;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("uncertain_points", TORCH_BOX(&fastinst::uncertain_points_cpu));
}
