// Losses of masks at points, on the CPU: pairs of logits and a mask as tasks.

#include "kernels/point_losses.h"

#include <tuple>

#include "indices.h"

namespace fastinst {
namespace {

using namespace point_losses;

// Numbers of pixels, bytes and points fit in 32 bits.
constexpr int64_t kLargest = int64_t(1) << 28;

// The arguments of both operators, as the kernels read them.
struct Pairs {
  ScalarType exact;
  Tensor logits, masks, mask_index, points;

  Pairs(const Tensor& any_logits, const Tensor& any_masks, const Tensor& any_index,
        const Tensor& any_points)
      : exact(accumulate_type(any_logits.scalar_type())),
        logits(torch::stable::contiguous(to_dtype(any_logits, exact))),
        masks(torch::stable::contiguous(any_masks)),
        mask_index(expect_indices("mask_index", any_index, any_logits.size(0), any_masks.size(0))),
        points(torch::stable::contiguous(to_dtype(any_points, exact))) {
    STD_TORCH_CHECK(logits.dim() == 3 && logits.size(1) > 0 && logits.size(2) > 0 &&
                        logits.size(1) * logits.size(2) < kLargest,
                    "logits must have pixels, and fewer than 2^28");
    expect_dtype("masks", masks, ScalarType::Int);
    STD_TORCH_CHECK(masks.dim() == 3 && masks.size(1) > 0 && masks.size(2) > 0 &&
                        masks.size(1) * masks.size(2) < kLargest,
                    "masks must have pixels, and fewer than 2^28 words");
    const int64_t rows = points.size(0) == 1 ? 1 : logits.size(0);
    expect_shape("points", points, {rows, points.size(1), 2});
    STD_TORCH_CHECK(points.size(1) > 0 && points.size(1) < kLargest,
                    "points must be at least one for each of logits, and fewer than 2^28");
  }

  template <typename T>
  Params<T> params() const {
    Params<T> params{};
    params.logits = static_cast<const T*>(logits.data_ptr());
    params.height = int(logits.size(1)), params.width = int(logits.size(2));
    params.masks = static_cast<const uint32_t*>(masks.data_ptr());
    params.mask_height = int(masks.size(1)), params.words = int(masks.size(2));
    params.mask_index = static_cast<const int64_t*>(mask_index.data_ptr());
    params.points = static_cast<const T*>(points.data_ptr());
    params.points_stride = points.size(0) == 1 ? 0 : 2 * points.size(1);
    params.count = int(points.size(1));
    return params;
  }
};

template <typename T>
void compare(const Pairs& pairs, Tensor& bce, Tensor& dice) {
  Params<T> params = pairs.params<T>();
  params.bce = static_cast<T*>(bce.data_ptr());
  params.dice = static_cast<T*>(dice.data_ptr());
  torch::stable::parallel_for(0, pairs.logits.size(0), 1, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(compare_pairs<T>, params, begin, end);
  });
}

std::tuple<Tensor, Tensor> point_losses_cpu(Tensor logits, Tensor masks, Tensor mask_index,
                                            Tensor points) {
  const Pairs pairs(logits, masks, mask_index, points);
  Tensor bce = torch::stable::new_empty(pairs.logits, {logits.size(0)});
  Tensor dice = torch::stable::new_empty(pairs.logits, {logits.size(0)});
  const auto run = pairs.exact == ScalarType::Double ? compare<double> : compare<float>;
  run(pairs, bce, dice);
  return {bce, dice};
}

template <typename T>
void differentiate(const Pairs& pairs, const Tensor& grad_bce, const Tensor& grad_dice,
                   Tensor& grad_logits) {
  Params<T> params = pairs.params<T>();
  params.grad_bce = static_cast<const T*>(grad_bce.data_ptr());
  params.grad_dice = static_cast<const T*>(grad_dice.data_ptr());
  params.grad_logits = static_cast<T*>(grad_logits.data_ptr());
  torch::stable::parallel_for(0, pairs.logits.size(0), 1, [&](int64_t begin, int64_t end) {
    FASTINST_CALL(differentiate_pairs<T>, params, begin, end);
  });
}

Tensor point_losses_backward_cpu(Tensor grad_bce, Tensor grad_dice, Tensor logits, Tensor masks,
                                 Tensor mask_index, Tensor points) {
  const Pairs pairs(logits, masks, mask_index, points);
  // The gradient of a sum is one number that all pairs share.
  const auto dense = [&](const char* name, const Tensor& grad) {
    expect_shape(name, grad, {logits.size(0)});
    return torch::stable::contiguous(to_dtype(grad, pairs.exact));
  };
  Tensor grad_logits = torch::stable::new_empty(
      pairs.logits, {logits.size(0), logits.size(1), logits.size(2)});
  const auto run =
      pairs.exact == ScalarType::Double ? differentiate<double> : differentiate<float>;
  run(pairs, dense("grad_bce", grad_bce), dense("grad_dice", grad_dice), grad_logits);
  return to_dtype(grad_logits, logits.scalar_type());
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("point_losses", TORCH_BOX(&fastinst::point_losses_cpu));
  m.impl("point_losses_backward", TORCH_BOX(&fastinst::point_losses_backward_cpu));
}
