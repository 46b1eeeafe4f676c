// Query selection: softmax over the classes, the best foreground class of each pixel, + 1 where it
// is a local maximum, and the pixels of highest rank.
//
// `classify_pixels` has one pixel in each lane and walks the classes twice: for the highest logit,
// and for the sum of exponentials, in the same order in every lane, so that pixels of equal logits
// have equal ranks wherever they lie. Where neighbouring pixels are not neighbours in memory
// (channels-last), squares of pixels and classes are transposed first.
//
// `choose_pixels` finds the rank of the last pixel to be chosen bit by bit, each with one count
// over the map, which for some thousand pixels takes less time than any sort.

#include "select_queries.h"

#include "lanes.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

using namespace select_queries;

// As in fastinst/ops/select_queries.py.
constexpr double kMinimumProbability = 1e-6;

constexpr double kLog2E = 1.4426950408889634;

// Copies the logits of kLanes pixels so that those of a class lie side by side: [classes, kLanes].
// Pixels from `count` on repeat the first.
template <typename T>
void gather_pixels(const T* logits, int64_t pixel_stride, int64_t class_stride, int classes,
                   int count, T* gathered) {
  constexpr int n = kLanes<T>;
  const T* pixels[n];
  for (int i = 0; i < n; ++i) pixels[i] = logits + (i < count ? i : 0) * pixel_stride;
  if (class_stride == 1 && classes >= n) {
    for (int k = 0; k < classes; k += n) {
      const int first = k + n <= classes ? k : classes - n;
      Vec<T> square[n];
      for (int i = 0; i < n; ++i) square[i] = load(pixels[i] + first);
      transpose<T>(square);
      for (int i = 0; i < n; ++i) store(gathered + (first + i) * n, square[i]);
    }
    return;
  }
  for (int k = 0; k < classes; ++k) {
    for (int i = 0; i < n; ++i) gathered[k * n + i] = pixels[i][k * class_stride];
  }
}

// Logits [classes + 1] of kLanes pixels, `stride` apart from class to class.
template <typename T>
void classify(const T* logits, int64_t stride, int classes, int count, T* probability,
              Key<T>* best) {
  Vec<T> highest = load(logits);
  for (int k = 1; k < classes; ++k) highest = max(load(logits + k * stride), highest);
  const Vec<T> other = load(logits + classes * stride);
  const Vec<T> shift = max(highest, other);
  const T log2e = T(kLog2E);
  Vec<T> total = exp2((other - shift) * log2e);
  Ints<T> arg{}, number = arg + classes;
  // Backwards, to end with the first of the classes that have it.
  for (int k = classes - 1; k >= 0; --k) {
    const Vec<T> logit = load(logits + k * stride);
    total += exp2((logit - shift) * log2e);
    number -= 1;
    arg = logit == highest ? number : arg;
  }
  // Here an error would not be a small part of a sum, so the more precise exponential.
  store_first(probability, exp(highest - shift) / total, count);
  for (int i = 0; i < count; ++i) best[i] = arg[i];
}

template <typename T>
Ints<T> load_keys(const Key<T>* from) {
  Ints<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// The ranks of one image as keys.
template <typename T>
void rank(const Params<T>& params, int64_t image, Key<T>* keys) {
  const int width = params.width;
  for (int y = 0; y < params.height; ++y) {
    const T* probability = params.probability + params.map(image) + y * width;
    const Key<T>* best = params.best + params.map(image) + y * width;
    for (int x = 0; x < width; x += kLanes<T>) {
      const Vec<T> p = load(probability + x);
      const Ints<T> k = load_keys<T>(best + x);
      Ints<T> beaten{};
      for (int dx = -1; dx <= 1; ++dx) {
        // The first column's left neighbours in memory end the row above.
        const Ints<T> column = lane_numbers<T>() + (x + dx);
        const Ints<T> inside = (column >= 0) & (column < width);
        for (int dy = -width; dy <= width; dy += width) {
          const int neighbour = x + dy + dx;
          beaten |= inside & (load_keys<T>(best + neighbour) == k) &
                    (load(probability + neighbour) > p);
        }
      }
      const Ints<T> maximum = ~beaten & (p >= T(kMinimumProbability));
      const Vec<T> rank = (params.local_maximum_first ? maximum : Ints<T>{}) ? p + 1 : p;
      // NaN ranks highest, as when PyTorch sorts.
      constexpr Key<T> kHighest = Key<T>(~(uint64_t(1) << 63) >> (64 - 8 * sizeof(T)));
      const Ints<T> key = rank != rank ? Ints<T>{} + kHighest : bit_cast<Ints<T>>(rank);
      __builtin_memcpy(keys + y * width + x, &key, sizeof key);
    }
  }
}

}  // namespace

template <typename T>
void classify_pixels(const Params<T>& params, int64_t image, int64_t begin, int64_t end,
                     T* scratch) {
  for (int64_t pixel = begin; pixel < end; pixel += kLanes<T>) {
    const int count = end - pixel < kLanes<T> ? int(end - pixel) : kLanes<T>;
    const T* logits =
        params.logits + image * params.image_stride + pixel * params.pixel_stride;
    int64_t stride = params.class_stride;
    if (params.pixel_stride != 1 || count < kLanes<T>) {
      gather_pixels(logits, params.pixel_stride, params.class_stride, params.classes + 1, count,
                    scratch);
      logits = scratch;
      stride = kLanes<T>;
    }
    const int64_t place = params.map(image) + pixel;
    classify(logits, stride, params.classes, count, params.probability + place,
             params.best + place);
  }
}

template <typename T>
void choose_pixels(const Params<T>& params, int64_t image, int count, Key<T>* keys,
                   int64_t* indices) {
  const int pixels = params.height * params.width;
  rank(params, image, keys);
  // The largest number that at least `count` keys reach. No rank is negative.
  Key<T> threshold = 0;
  int above = pixels;  // or equal
  for (int bit = 8 * int(sizeof(T)) - 2; bit >= 0 && above > count; --bit) {
    const Key<T> candidate = threshold | Key<T>(1) << bit;
    int reached = 0;
    for (int i = 0; i < pixels; ++i) reached += keys[i] >= candidate;
    if (reached >= count) {
      threshold = candidate;
      above = reached;
    }
  }
  int equal = count;
  for (int i = 0; i < pixels; ++i) equal -= keys[i] > threshold;
  for (int i = 0; i < kPadding; ++i) keys[pixels + i] = -1;
  for (int first = 0; first < pixels; first += kLanes<T>) {
    uint32_t reaching = lane_bits(load_keys<T>(keys + first) >= threshold);
    for (; reaching != 0; reaching &= reaching - 1) {
      const int i = first + __builtin_ctz(reaching);
      // Of those equal to it, the first.
      if (keys[i] > threshold || equal-- > 0) *indices++ = i;
    }
  }
}

#define INSTANTIATE(T)                                                                 \
  template void classify_pixels<T>(const Params<T>&, int64_t, int64_t, int64_t, T*);   \
  template void choose_pixels<T>(const Params<T>&, int64_t, int, Key<T>*, int64_t*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace FASTINST_ISA
}  // namespace fastinst
