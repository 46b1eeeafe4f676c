#include "../kernels/sample_masks.cuh"

#include "device.h"

namespace fastinst {
namespace {

template <typename A>
void sample(const Tensor& masks, const Tensor& points, const Tensor& groups, const Tensor& samples,
            cudaStream_t stream) {
  launch_sample_masks<A>({data<unsigned>(masks), data<Point<A>>(points), data<long long>(groups),
                          int(masks.size(0)), int(masks.size(1)), int(masks.size(2)),
                          int(points.size(1)), data<A>(samples)},
                         stream);
}

Tensor sample_masks(Tensor masks, Tensor points, Tensor groups) {
  const OnDevice device(masks);
  expect_dtype("masks", masks, ScalarType::Int);
  expect_dtype("groups", groups, ScalarType::Long);
  expect_shape("groups", groups, {masks.size(0)});
  expect_shape("points", points, {points.size(0), points.size(1), 2});
  masks = torch::stable::contiguous(masks);
  points = torch::stable::contiguous(points);
  groups = torch::stable::contiguous(groups);
  const Tensor samples = torch::stable::new_empty(points, {masks.size(0), points.size(1)});
  const bool is_double = points.scalar_type() == ScalarType::Double;
  if (!is_double) expect_dtype("points", points, ScalarType::Float);
  (is_double ? sample<double> : sample<float>)(masks, points, groups, samples, device.stream);
  return samples;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("sample_masks", TORCH_BOX(&fastinst::sample_masks));
}
