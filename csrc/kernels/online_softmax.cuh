// The online softmax of a warp's rows, with weights 2^(scale (score - reference) + kHeadroom). As
// the sums of value live in tensor cores' registers, in an order that is theirs, they cannot be
// rescaled there when the reference changes. So it changes only when a weight would exceed 2^kSlack
// times the largest there was: then they pass through scratch into `sums_`, where a lane knows its
// row.
#pragma once

#include "attention.cuh"

namespace fastinst {

// The largest weight is 2^kHeadroom when a reference is set to its score, which is left until a
// weight is 2^kSlack above that. For half this is close to its largest number, so that small
// weights stay above its smallest.
constexpr int kSlack = 8;
template <typename T>
constexpr int kHeadroom = 0;
template <>
constexpr int kHeadroom<__half> = 7;

template <typename T, typename Block>
class OnlineSoftmax {
  using Real = Accumulate<T>;

 public:
  __device__ __forceinline__ explicit OnlineSoftmax(Real* scratch) : scratch_(scratch) {
    products_.clear();
  }

  // Takes a tile of scores, those with a bit. `value` is [kTileColumns, kSlice] in shared memory,
  // or null. The whole warp calls.
  __device__ __forceinline__ void add(const WarpTile<T, kTileRows, kTileColumns>& scores,
                                      unsigned bits, Real scale, const T* value) {
    Real weights[kLaneValues];
    take_values<Block>(scores, scratch_, weights);
    Real maximum = -infinity<Real>();
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      weights[i] = has_bit(bits, i) ? weights[i] : -infinity<Real>();
      maximum = max(maximum, weights[i]);
    }
    maximum = warp_reduce<2>(maximum, Maximum());
    const bool exceeds = scale * (maximum - reference_) > kSlack;
    if (__any_sync(kFullWarp, exceeds)) move_reference(exceeds ? maximum : reference_, scale);
    // Without any finite score yet, the reference is of no matter.
    const Real subtract = reference_ == -infinity<Real>() ? 0 : reference_;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      // The sum is that of the weights as they are multiplied: rounded ones add up to 1 as well.
      // The gradients, for which there is no value here, multiply more exactly.
      const Real exponent = fma(weights[i] - subtract, scale, static_cast<Real>(kHeadroom<T>));
      const Real weight = power_of_two(exponent);
      weights[i] = value == nullptr ? weight : widen(narrow<T>(weight));
      sum_ += weights[i];
    }
    if (value == nullptr) return;
    const T* matrix = put_values<T, Block>(weights, scratch_);
    products_.template multiply_add<kTileColumns, Order::kRowMajor, Order::kRowMajor>(
        matrix, Block::kStride, value, Block::kStride);
    __syncwarp();
  }

  // The row's sum of weights and, in `sums`, its lane's channels of the sums of value.
  __device__ __forceinline__ Real finish(Real (&sums)[kLaneValues]) {
    collect_products();
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sums[i] = sums_[i];
    return warp_reduce<2>(sum_, Sum());
  }

  __device__ __forceinline__ Real reference() const { return reference_; }

 private:
  __device__ __forceinline__ void move_reference(Real reference, Real scale) {
    const bool has_sums = reference_ > -infinity<Real>();
    const Real factor =
        reference == reference_ ? 1 : power_of_two(scale * (reference_ - reference));
    reference_ = reference;
    if (!__any_sync(kFullWarp, has_sums && factor != 1)) return;
    collect_products();
    products_.clear();
    sum_ *= factor;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sums_[i] *= factor;
  }

  __device__ __forceinline__ void collect_products() {
    Real products[kLaneValues];
    take_values<Block>(products_, scratch_, products);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sums_[i] += products[i];
  }

  Real* scratch_;
  Real reference_ = -infinity<Real>();
  Real sum_ = 0;  // of the weights in the lane's columns
  Real sums_[kLaneValues] = {};
  WarpTile<T, kTileRows, kSlice> products_;
};

}  // namespace fastinst
