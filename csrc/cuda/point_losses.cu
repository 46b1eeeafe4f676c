#include "../kernels/point_losses.cuh"

#include <tuple>

#include "device.h"

namespace fastinst {
namespace {

// What both passes read, as the kernels want it: points in the dtype that logits are sampled in.
struct Arguments {
  Tensor logits, masks, mask_index, points;

  Arguments(const Tensor& logits, const Tensor& masks, const Tensor& mask_index,
            const Tensor& points)
      : logits(torch::stable::contiguous(logits)),
        masks(torch::stable::contiguous(masks)),
        mask_index(torch::stable::contiguous(mask_index)),
        points(torch::stable::contiguous(to_dtype(points, accumulate_type(logits.scalar_type())))) {
    const int64_t pairs = logits.size(0);
    expect_dtype("masks", masks, ScalarType::Int);
    expect_dtype("mask_index", mask_index, ScalarType::Long);
    expect_shape("mask_index", mask_index, {pairs});
    expect_shape("points", points, {points.size(0) == 1 ? 1 : pairs, points.size(1), 2});
  }

  template <typename T>
  PointLossesPlan plan(bool has_gradient) const {
    return plan_point_losses<T>(logits.size(1) * logits.size(2), masks.size(1) * masks.size(2),
                                has_gradient, maximum_shared_bytes());
  }

  template <typename T>
  PointLossesParams<T> params(const PointLossesPlan& plan) const {
    return {data<T>(logits),
            data<unsigned>(masks),
            data<long long>(mask_index),
            data<Point<Accumulate<T>>>(points),
            int(logits.size(0)),
            int(logits.size(1)),
            int(logits.size(2)),
            int(masks.size(1)),
            int(masks.size(2)),
            int(points.size(1)),
            points.size(0) == 1,
            plan.copy_map,
            plan.copy_mask};
  }
};

std::tuple<Tensor, Tensor> point_losses(Tensor logits, Tensor masks, Tensor mask_index,
                                        Tensor points) {
  const OnDevice device(logits);
  const Arguments arguments(logits, masks, mask_index, points);
  const ScalarType exact = accumulate_type(logits.scalar_type());
  const Tensor bce = torch::stable::new_empty(logits, {logits.size(0)}, exact);
  const Tensor dice = torch::stable::new_empty(logits, {logits.size(0)}, exact);
  dispatch(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::Type;
    using A = Accumulate<T>;
    launch_point_losses<T>(
        {arguments.params<T>(arguments.plan<T>(false)), data<A>(bce), data<A>(dice)},
        device.stream);
  });
  return {bce, dice};
}

Tensor point_losses_backward(Tensor grad_bce, Tensor grad_dice, Tensor logits, Tensor masks,
                             Tensor mask_index, Tensor points) {
  const OnDevice device(logits);
  const Arguments arguments(logits, masks, mask_index, points);
  const ScalarType exact = accumulate_type(logits.scalar_type());
  const auto prepared = [&](const char* name, const Tensor& gradient) {
    expect_shape(name, gradient, {logits.size(0)});
    return torch::stable::contiguous(to_dtype(gradient, exact));
  };
  const Tensor by_bce = prepared("grad_bce", grad_bce), by_dice = prepared("grad_dice", grad_dice);
  const Tensor grad_logits = torch::stable::new_empty(arguments.logits, arguments.logits.sizes());
  dispatch(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::Type;
    using A = Accumulate<T>;
    const PointLossesPlan plan = arguments.plan<T>(true);
    std::optional<Tensor> sums;
    if (!plan.sums_in_shared) {
      const bool is_wide = logits.scalar_type() == exact;
      sums = is_wide ? grad_logits : torch::stable::new_empty(logits, logits.sizes(), exact);
    }
    launch_point_losses_backward<T>({arguments.params<T>(plan), data<A>(by_bce), data<A>(by_dice),
                                     sums ? data<A>(*sums) : nullptr, data<T>(grad_logits)},
                                    device.stream);
  });
  return grad_logits;
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CUDA, m) {
  m.impl("point_losses", TORCH_BOX(&fastinst::point_losses));
  m.impl("point_losses_backward", TORCH_BOX(&fastinst::point_losses_backward));
}
