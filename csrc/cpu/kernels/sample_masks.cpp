// Samples of packed masks: a vector of points at a time, two loads of 32 bits for each point.

#include "sample_masks.h"

#include "sample_bits.h"

namespace fastinst {
namespace FASTINST_ISA {

using namespace sample_masks;

template <typename T>
void sample_rows(const Params<T>& params, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const Mask mask{params.masks + row * params.height * params.words, params.height,
                    params.words};
    const T* points = params.points + params.groups[row] * params.count * 2;
    T* samples = params.samples + row * params.count;
    for (int i = 0; i < params.count; i += kLanes<T>) {
      Vec<T> x, y;
      load_points(points + 2 * i, params.count - i, x, y);
      const Vec<T> t = sample_bits<T>(mask, x, y);
      if (params.count - i >= kLanes<T>) {
        store(samples + i, t);
      } else {
        store_first(samples + i, t, params.count - i);
      }
    }
  }
}

template void sample_rows<float>(const Params<float>&, int64_t, int64_t);
template void sample_rows<double>(const Params<double>&, int64_t, int64_t);

}  // namespace FASTINST_ISA
}  // namespace fastinst
