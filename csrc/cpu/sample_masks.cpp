// Samples of packed masks on the CPU: masks as tasks.

#include "kernels/sample_masks.h"

#include "indices.h"

namespace fastinst {
namespace {

using namespace sample_masks;

// Numbers of bytes and points fit in 32 bits.
constexpr int64_t kLargest = int64_t(1) << 28;

template <typename T>
void sample(const Tensor& masks, const Tensor& points, const Tensor& groups, Tensor& samples) {
  const Params<T> params{static_cast<const uint32_t*>(masks.data_ptr()),
                         int(masks.size(1)),
                         int(masks.size(2)),
                         static_cast<const T*>(points.data_ptr()),
                         static_cast<const int64_t*>(groups.data_ptr()),
                         int(points.size(1)),
                         static_cast<T*>(samples.data_ptr())};
  torch::stable::parallel_for(0, masks.size(0), 1, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(sample_rows<T>, params, begin, end);
  });
}

Tensor sample_masks_cpu(Tensor masks, Tensor points, Tensor groups) {
  expect_dtype("masks", masks, ScalarType::Int);
  STD_TORCH_CHECK(masks.dim() == 3 && masks.size(1) > 0 && masks.size(2) > 0 &&
                      masks.size(1) * masks.size(2) < kLargest,
                  "masks must have pixels, and fewer than 2^28 words");
  expect_shape("points", points, {points.size(0), points.size(1), 2});
  STD_TORCH_CHECK(points.size(1) < kLargest, "points must be fewer than 2^28");
  const ScalarType exact = accumulate_type(points.scalar_type());
  expect_dtype("points", points, exact);
  const Tensor rows = torch::stable::contiguous(masks);
  const Tensor places = torch::stable::contiguous(points);
  const Tensor of_rows = expect_indices("groups", groups, masks.size(0), points.size(0));
  Tensor samples = torch::stable::new_empty(places, {masks.size(0), points.size(1)});
  const auto run = exact == ScalarType::Double ? sample<double> : sample<float>;
  run(rows, places, of_rows, samples);
  return samples;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("sample_masks", TORCH_BOX(&fastinst::sample_masks_cpu));
}
