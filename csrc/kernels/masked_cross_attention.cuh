// What precedes the attention of masked queries: which of them have a bit at all, as the others
// attend everywhere, and, if the mask is bool, its bits. The attention itself is in
// attention_forward.cuh and attention_backward.cuh.
//
// A block owns a query. A warp of it makes the bits of 32 pixels by one ballot, each lane reading a
// byte, or looks at 32 words that are there.
#pragma once

#include "common.cuh"
#include "launch.cuh"

namespace fastinst {

constexpr int kSurveyThreads = 512;

struct SurveyParams {
  // Either bool [B, queries, pixels] in memory of any strides and room for its bits, or null and
  // bits.
  const bool* attend;
  long long batch_stride, query_stride, pixel_stride;
  unsigned* bits;         // [B, queries, ceil(pixels / 32)]
  unsigned char* guided;  // [B, queries]: whether there is a bit
  int batch, queries, pixels;
};

__global__ void __launch_bounds__(kSurveyThreads) survey_kernel(SurveyParams params) {
  const int batch = blockIdx.x / params.queries, query = blockIdx.x % params.queries;
  const int words = ceil_div(params.pixels, kWarpSize);
  unsigned* bits = params.bits + static_cast<size_t>(blockIdx.x) * words;
  bool guided = false;
  if (params.attend != nullptr) {
    const bool* attend =
        params.attend + batch * params.batch_stride + query * params.query_stride;
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll 4
    for (int word = threadIdx.x / kWarpSize; word < words; word += kSurveyThreads / kWarpSize) {
      const int pixel = word * kWarpSize + lane;
      const bool attends = pixel < params.pixels && attend[pixel * params.pixel_stride];
      const unsigned ballot = __ballot_sync(kFullWarp, attends);
      if (lane == 0) bits[word] = ballot;
      guided |= ballot != 0;
    }
  } else {
    for (int word = threadIdx.x; word < words; word += kSurveyThreads) {
      const int left = params.pixels - word * kWarpSize;
      const unsigned of_pixels = left < kWarpSize ? (1u << left) - 1 : ~0u;
      guided |= (bits[word] & of_pixels) != 0;
    }
  }
  guided = __syncthreads_or(guided);
  if (threadIdx.x == 0) params.guided[blockIdx.x] = guided;
}

#ifndef __CUDACC_RTC__
inline void launch_survey(const SurveyParams& params, cudaStream_t stream) {
  launch(survey_kernel, params.batch * params.queries, kSurveyThreads, 0, stream, params);
}
#endif

}  // namespace fastinst
