// Query selection on the CPU: rows of pixels as tasks, then images, then the chosen pixels.

#include "kernels/select_queries.h"

#include <algorithm>
#include <tuple>

#include "../common.h"

namespace fastinst {
namespace {

using namespace select_queries;

// Channels copied at once of maps whose channels are not neighbours in memory: a cache line of the
// result in float32.
constexpr int64_t kChannels = 16;

// Pixels classified at once, and how many such blocks a thread must have to be worth its start.
constexpr int64_t kBlockPixels = 64;
constexpr int64_t kGrainBlocks = 8;

// From a pixel of a map to the next, row after row.
int64_t pixel_stride(const Tensor& maps) { return maps.stride(maps.size(3) > 1 ? 3 : 2); }

bool has_one_pixel_stride(const Tensor& maps) {
  return maps.size(2) == 1 || maps.stride(2) == maps.size(3) * pixel_stride(maps);
}

template <typename T>
Tensor choose(const Tensor& logits, int64_t count, bool local_maximum_first) {
  const int64_t batch = logits.size(0), classes = logits.size(1) - 1;
  const int64_t height = logits.size(2), width = logits.size(3);
  const int64_t margin = width + 1 + kPadding, pixels = height * width;
  thread_local std::vector<T> probability;
  thread_local std::vector<Key<T>> best;
  probability.assign(batch * (margin + pixels + margin), T(0));
  best.assign(probability.size(), -1);
  const Params<T> params{static_cast<const T*>(logits.data_ptr()),
                         logits.stride(0),
                         logits.stride(1),
                         pixel_stride(logits),
                         int(classes),
                         int(height),
                         int(width),
                         local_maximum_first,
                         int(margin),
                         probability.data(),
                         best.data()};
  const int64_t blocks = (pixels + kBlockPixels - 1) / kBlockPixels;
  torch::stable::parallel_for(0, batch * blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    thread_local std::vector<T> scratch;
    scratch.resize((classes + 1) * kPadding);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % blocks * kBlockPixels;
      FASTINST_CALL(classify_pixels<T>, params, block / blocks, first,
                    std::min(first + kBlockPixels, pixels), scratch.data());
    }
  });
  Tensor indices = torch::stable::new_empty(logits, {batch, count}, ScalarType::Long);
  int64_t* chosen = static_cast<int64_t*>(indices.data_ptr());
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<Key<T>> keys;
    keys.resize(pixels + kPadding);
    for (int64_t image = begin; image < end; ++image) {
      FASTINST_CALL(choose_pixels<T>, params, image, int(count), keys.data(),
                    chosen + image * count);
    }
  });
  return indices;
}

// [1 or B, C, h, w] at [B, N] to [B, N, C]. T is any type of the elements' size.
template <typename T>
void gather(const Tensor& maps, const Tensor& indices, Tensor& rows) {
  const int64_t count = indices.size(1), channels = maps.size(1), width = maps.size(3);
  const int64_t image_stride = maps.size(0) == 1 ? 0 : maps.stride(0);
  const int64_t channel_stride = maps.stride(1);
  const int64_t row_stride = maps.stride(2), column_stride = maps.stride(3);
  const int64_t block = channel_stride == 1 ? channels : kChannels;
  const T* from = static_cast<const T*>(maps.data_ptr());
  const int64_t* chosen = static_cast<const int64_t*>(indices.data_ptr());
  T* to = static_cast<T*>(rows.data_ptr());
  torch::stable::parallel_for(0, indices.numel(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < channels; first += block) {
      const int64_t last = first + block < channels ? first + block : channels;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t y = chosen[i] / width, x = chosen[i] % width;
        const T* pixel =
            from + i / count * image_stride + y * row_stride + x * column_stride;
        for (int64_t c = first; c < last; ++c) to[i * channels + c] = pixel[c * channel_stride];
      }
    }
  });
}

Tensor gather(const Tensor& maps, const Tensor& indices) {
  Tensor rows =
      torch::stable::new_empty(maps, {indices.size(0), indices.size(1), maps.size(1)});
  switch (maps.element_size()) {
    case 1: gather<uint8_t>(maps, indices, rows); break;
    case 2: gather<uint16_t>(maps, indices, rows); break;
    case 4: gather<uint32_t>(maps, indices, rows); break;
    case 8: gather<uint64_t>(maps, indices, rows); break;
    default: STD_TORCH_CHECK(false, "features and positions must be of at most 8 bytes a number");
  }
  return rows;
}

std::tuple<Tensor, Tensor, Tensor> select_queries_cpu(Tensor class_logits, Tensor features,
                                                      Tensor positions, int64_t num_queries,
                                                      bool local_maximum_first) {
  const int64_t height = class_logits.size(2), width = class_logits.size(3);
  STD_TORCH_CHECK(class_logits.size(1) > 1, "class_logits must have two classes or more");
  STD_TORCH_CHECK(num_queries > 0 && num_queries <= height * width,
                  "num_queries must be at least 1, and at most the number of pixels");
  const int64_t maps = positions.size(0) == 1 ? 1 : class_logits.size(0);
  expect_shape("features", features, {class_logits.size(0), features.size(1), height, width});
  expect_shape("positions", positions, {maps, positions.size(1), height, width});
  const ScalarType exact = accumulate_type(class_logits.scalar_type());
  Tensor logits = to_dtype(class_logits, exact);
  if (!has_one_pixel_stride(logits)) logits = torch::stable::contiguous(logits);
  const auto choose_queries = exact == ScalarType::Double ? choose<double> : choose<float>;
  const Tensor indices = choose_queries(logits, num_queries, local_maximum_first);
  return {gather(features, indices), gather(positions, indices), indices};
}

}  // namespace
}  // namespace fastinst

STABLE_TORCH_LIBRARY_IMPL(fastinst, CPU, m) {
  m.impl("select_queries", TORCH_BOX(&fastinst::select_queries_cpu));
}
