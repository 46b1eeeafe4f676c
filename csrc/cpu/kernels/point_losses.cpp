// Binary cross-entropy and dice of mask logits against packed masks, at points.
//
// A pair of a map of logits and a mask is a task. Its logits become cells (bilinear.h), then each
// vector of points is sampled from both and goes into four sums. They are kept in vectors for a
// block of points, then added to others in double: their order depends on nothing but the number of
// points and of lanes.
//
// The gradient needs the sums before it can say what a point's is: samples are taken once and kept,
// 8 bytes a point, in the second cache. Gradients are added to cells, four numbers at a time, and
// the cells to the map.

#include "point_losses.h"

#include "buffer.h"
#include "sample_bits.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

using namespace point_losses;

// Points whose terms are added in floats, 8 to each lane. Of many equal terms, as of logits that
// are all near 0, more would add up their roundings.
template <typename T>
constexpr int kBlockPoints = 8 * kLanes<T>;

template <typename T>
struct Logistic {
  Vec<T> sigmoid, softplus;  // 1 / (1 + exp(-x)) and log(1 + exp(-|x|))
};

inline Logistic<float> logistic(Vec<float> x) {
  const Vec<float> e = exp(x < 0 ? x : -x);
  // log(1 + e) = 2 artanh(z) with z = e / (2 + e), at most 1/3. The series' next term is less than
  // a quarter of a unit in the last place.
  const Vec<float> z = e / (2 + e), square = z * z;
  Vec<float> series = square * (1.0f / 15) + 1.0f / 13;
  series = series * square + 1.0f / 11;
  series = series * square + 1.0f / 9;
  series = series * square + 1.0f / 7;
  series = series * square + 1.0f / 5;
  series = series * square + 1.0f / 3;
  const Vec<float> twice = z + z;
  return {(x < 0 ? e : broadcast(1.0f)) / (1 + e), twice * (series * square) + twice};
}
inline Logistic<double> logistic(Vec<double> x) {
  Logistic<double> result;
  for (int i = 0; i < kLanes<double>; ++i) {
    const double e = __builtin_exp(-__builtin_fabs(x[i]));
    result.sigmoid[i] = (x[i] < 0 ? e : 1) / (1 + e);
    result.softplus[i] = __builtin_log1p(e);
  }
  return result;
}

// What is added up: losses, s = sigmoid(x), t and s t.
enum Sum { kLoss, kSigmoid, kMask, kOverlap, kSums };

struct Sums {
  double of[kSums];

  double total() const { return of[kSigmoid] + of[kMask] + 1; }
  double overlap() const { return 2 * of[kOverlap] + 1; }
};

// Sums over all points of a pair. Unless `kept` is none, s and t of each vector of points are
// written there, one after the other.
template <typename T>
Sums sum_points(const Params<T>& params, int64_t pair, const T* cells, T* kept) {
  const Mask mask{params.masks +
                      params.mask_index[pair] * params.mask_height * params.words,
                  params.mask_height, params.words};
  const T* points = params.points + pair * params.points_stride;
  double lanes[kSums][kLanes<T>] = {};
  for (int begin = 0; begin < params.count; begin += kBlockPoints<T>) {
    const int end = min(begin + kBlockPoints<T>, params.count);
    Vec<T> block[kSums] = {};
    for (int i = begin; i < end; i += kLanes<T>) {
      Vec<T> x, y;
      load_points(points + 2 * i, end - i, x, y);
      const Vec<T> logit = sample<T>(cells, params.width, between<T>(x, params.width),
                                     between<T>(y, params.height));
      Vec<T> t = sample_bits<T>(mask, x, y);
      const Logistic<T> of = logistic(logit);
      Vec<T> s = of.sigmoid;
      Vec<T> loss = max(logit, Vec<T>{}) - logit * t + of.softplus;
      if (end - i < kLanes<T>) {
        const Ints<T> inside = lane_numbers<T>() < Int<T>(end - i);
        t = inside ? t : Vec<T>{};
        s = inside ? s : Vec<T>{};
        loss = inside ? loss : Vec<T>{};
      }
      block[kLoss] += loss;
      block[kSigmoid] += s;
      block[kMask] += t;
      block[kOverlap] += s * t;
      if (kept != nullptr) {
        store(kept + 2 * i, s);
        store(kept + 2 * i + kLanes<T>, t);
      }
    }
    for (int k = 0; k < kSums; ++k) {
      T terms[kLanes<T>];
      store(terms, block[k]);
      for (int i = 0; i < kLanes<T>; ++i) lanes[k][i] += terms[i];
    }
  }
  Sums sums{};
  for (int k = 0; k < kSums; ++k) {
    for (int i = 0; i < kLanes<T>; ++i) sums.of[k] += lanes[k][i];
  }
  return sums;
}

}  // namespace

template <typename T>
void compare_pairs(const Params<T>& params, int64_t begin, int64_t end) {
  const int height = params.height, width = params.width;
  Buffer<T> cells(4 * count_cells(height, width));
  for (int64_t pair = begin; pair < end; ++pair) {
    lay_out_cells<T>(params.logits + pair * height * width, height, width, cells);
    const Sums sums = sum_points<T>(params, pair, cells, nullptr);
    params.bce[pair] = T(sums.of[kLoss] / params.count);
    params.dice[pair] = T(1 - sums.overlap() / sums.total());
  }
}

template <typename T>
void differentiate_pairs(const Params<T>& params, int64_t begin, int64_t end) {
  const int height = params.height, width = params.width;
  const int64_t numbers = 4 * count_cells(height, width);
  Buffer<T> cells(numbers), kept(2 * (params.count + kLanes<T>));
  for (int64_t pair = begin; pair < end; ++pair) {
    lay_out_cells<T>(params.logits + pair * height * width, height, width, cells);
    const Sums sums = sum_points<T>(params, pair, cells, kept);
    const double total = sums.total(), overlap = sums.overlap();
    const T by_bce = T(params.grad_bce[pair] / params.count);
    // The derivative of dice by s is (overlap - 2 t total) / total^2.
    const T by_dice = T(params.grad_dice[pair] * overlap / (total * total));
    const T by_dice_at_t = T(params.grad_dice[pair] * 2 / total);
    fill_zero<T>(cells, numbers);
    const T* points = params.points + pair * params.points_stride;
    for (int i = 0; i < params.count; i += kLanes<T>) {
      Vec<T> x, y;
      load_points(points + 2 * i, params.count - i, x, y);
      const Vec<T> s = load<T>(kept + 2 * i), t = load<T>(kept + 2 * i + kLanes<T>);
      // 0 past the last point, where s and t are.
      const Vec<T> gradient = by_bce * (s - t) + (by_dice - by_dice_at_t * t) * (s * (1 - s));
      add_to_cells<T>(gradient, width, between<T>(x, width), between<T>(y, height), cells);
    }
    add_up_cells<T>(cells, height, width, params.grad_logits + pair * height * width);
  }
}

#define INSTANTIATE(T)                                                     \
  template void compare_pairs<T>(const Params<T>&, int64_t, int64_t);      \
  template void differentiate_pairs<T>(const Params<T>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace FASTINST_ISA
}  // namespace fastinst
