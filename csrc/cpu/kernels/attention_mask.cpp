// Bit l of query n is embeddings[n] . pixels[l] + bias[n] >= 0.
//
// A task packs the embeddings of its image, and takes its pixels in blocks of 32, transposed so
// that they are in the lanes: a row of the product is then a word, and 32 logits live no longer
// than it takes to see their signs.

#include "attention_mask.h"

#include "buffer.h"
#include "panels.h"

namespace fastinst {
namespace FASTINST_ISA {
namespace {

// Bit i is whether logit i of 32, and bias, is at least 0. NaN is not.
template <typename A>
inline uint32_t signs(const A* logits, A bias) {
  uint32_t word = 0;
  for (int i = 0; i < kBlock; i += kLanes<A>) word |= lane_bits(load(logits + i) + bias >= 0) << i;
  return word;
}

template <typename T>
void mask_task(const AttentionMaskParams& p, int64_t task) {
  using A = Accumulate<T>;
  const int64_t image = task / p.tasks_per_image();
  const int64_t first_word = task % p.tasks_per_image() * kMaskTaskWords;
  const int64_t last_word = min(first_word + kMaskTaskWords, p.words());
  const T* embeddings = (const T*)p.embeddings + image * p.embeddings_batch_stride;
  const T* features = (const T*)p.features + image * p.features_batch_stride;
  const A* bias = p.bias == nullptr ? nullptr : (const A*)p.bias + image * p.queries;

  const int64_t slices = ceil_div(p.channels, kBlock);
  Buffer<A> embedding_memory(slices * p.queries * kBlock);
  Buffer<A> pixels(slices * kSquare), transposed_pixels(slices * kSquare);
  Buffer<A> logits(p.queries * kBlock);
  const Panels<A> packed{embedding_memory, p.queries};
  pack_rows<T>(embeddings, p.embedding_stride, p.queries, p.channels, A(1), packed);
  for (int64_t word = first_word; word < last_word; ++word) {
    const int64_t first = word * kBlock, count = min(kBlock, p.pixels - first);
    pack_block<T>(features + first * p.feature_stride, p.feature_stride, count, p.channels,
                  pixels);
    transpose_block<A>(pixels, slices, transposed_pixels);
    multiply_by_transposed<A>(packed, transposed_pixels, p.queries, p.channels, logits);
    const uint32_t inside = 0xffffffffu >> (kBlock - count);
    uint32_t* to = p.bits + image * p.queries * p.words() + word;
    for (int64_t query = 0; query < p.queries; ++query) {
      const A own = bias == nullptr ? A(0) : bias[query];
      to[query * p.words()] = signs<A>(logits + query * kBlock, own) & inside;
    }
  }
}

}  // namespace

void attention_mask_task(const AttentionMaskParams& params, int64_t task) {
  with_type(params.type, [&](auto number) { mask_task<decltype(number)>(params, task); });
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
