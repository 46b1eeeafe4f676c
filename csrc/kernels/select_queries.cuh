// Query selection: pixels are ranked by the probability of their best foreground class, + 1 if no
// neighbour of the same class beats it, and the best `count` of them are gathered in ascending
// order of their index. fastinst/ops/select_queries.py defines it.
//
// Two launches, because a pixel's rank needs its neighbours' probabilities:
//   find_candidates_kernel: a block owns 32 pixels, and 8 groups of threads share their classes.
//     Where the classes lie side by side in memory (channels-last) the groups of a pixel are
//     neighbouring threads, else the pixels of a group are: either way loads coalesce.
//   take_queries_kernel: a block writes kQueriesPerBlock queries. Which they are, every block finds
//     out for itself: for some thousands of ranks in shared memory that is cheaper than a launch.
//     The smallest chosen rank is found bit by bit from the top by counting the ranks that reach a
//     trial value; equal ranks are then taken in the order of their index.
#pragma once

#include "common.cuh"
#include "launch.cuh"

namespace fastinst {

// Strides in elements.
struct MapStrides {
  long long batch, channel, row, column;
};

// The best foreground class of a pixel and its softmax probability.
template <typename A>
struct alignas(2 * sizeof(A)) Candidate {
  A probability;
  int best;
};

template <typename T>
struct FindCandidatesParams {
  const T* logits;  // [B, classes, height, width], of which the last class is no-object
  MapStrides strides;
  int batch, classes, height, width;
  Candidate<Accumulate<T>>* candidates;  // [B, height * width]
};

template <typename A, typename Element>
struct TakeQueriesParams {
  const Candidate<A>* candidates;
  int batch, height, width;
  bool local_maximum_first;
  int count;

  int channels;
  const Element* features;  // [B, channels, height, width]
  const Element* positions;  // the same; a batch stride of 0 for one map of all
  MapStrides feature_strides, position_strides;
  Element* taken_features;  // [B, count, channels]
  Element* taken_positions;
  long long* indices;  // [B, count]

  void* ranks;  // [B, height * width] of what RankBits<A> is, or null for shared memory
};

namespace {

constexpr int kPixelsPerBlock = 32;
constexpr int kClassGroups = 8;
constexpr int kCandidateThreads = kPixelsPerBlock * kClassGroups;
// Of [group, pixel] in shared memory: 8 groups by 4 pixels, too, lie in different banks.
constexpr int kGroupStride = kPixelsPerBlock + 4;
constexpr int kTakeThreads = 512;
constexpr int kSelectionBlocks = 1;  // the grids are small: no registers need be spared for more
constexpr int kQueriesPerBlock = 8;

// A rank's bits are in the ranks' order, as no rank is negative.
template <typename A>
struct RankBits;
template <>
struct RankBits<float> {
  using Type = unsigned;
  static constexpr int kHighest = 30;
  static __device__ __forceinline__ unsigned of(float rank) { return __float_as_uint(rank); }
  static __device__ __forceinline__ unsigned nan() { return 0x7fc00000u; }
};
template <>
struct RankBits<double> {
  using Type = unsigned long long;
  static constexpr int kHighest = 62;
  static __device__ __forceinline__ unsigned long long of(double rank) {
    return static_cast<unsigned long long>(__double_as_longlong(rank));
  }
  static __device__ __forceinline__ unsigned long long nan() { return 0x7ff8000000000000ull; }
};

// Over the kClassGroups threads of a pixel, always in the order of the groups.
template <typename T, typename Operation>
__device__ __forceinline__ T over_groups(T value, Operation operation, int pixel, int group,
                                         T (&scratch)[kClassGroups][kGroupStride]) {
  scratch[group][pixel] = value;
  __syncthreads();
  value = scratch[0][pixel];
#pragma unroll
  for (int other = 1; other < kClassGroups; ++other) {
    value = operation(value, scratch[other][pixel]);
  }
  __syncthreads();
  return value;
}

template <typename T>
__global__ void __launch_bounds__(kCandidateThreads, kSelectionBlocks)
find_candidates_kernel(FindCandidatesParams<T> params) {
  using A = Accumulate<T>;
  __shared__ A scratch[kClassGroups][kGroupStride];
  __shared__ int index_scratch[kClassGroups][kGroupStride];
  const bool classes_adjoin = params.strides.channel == 1;
  const int thread = threadIdx.x;
  const int pixel = classes_adjoin ? thread / kClassGroups : thread % kPixelsPerBlock;
  const int group = classes_adjoin ? thread % kClassGroups : thread / kPixelsPerBlock;

  // The last block's surplus threads repeat the last pixel, for they have barriers to reach.
  const int pixels = params.height * params.width;
  const int index = min(static_cast<int>(blockIdx.x) * kPixelsPerBlock + pixel, pixels - 1);
  const T* logits = params.logits + blockIdx.y * params.strides.batch +
                    index / params.width * params.strides.row +
                    index % params.width * params.strides.column;
  const auto logit = [&](int c) { return widen(logits[c * params.strides.channel]); };

  A largest = -infinity<A>();
  for (int c = group; c < params.classes; c += kClassGroups) {
    largest = Maximum()(largest, logit(c));
  }
  largest = over_groups(largest, Maximum(), pixel, group, scratch);

  A sum = 0, likeliest = 0;
  for (int c = group; c < params.classes; c += kClassGroups) {
    const A exponential = exp(logit(c) - largest);
    sum += exponential;
    if (c < params.classes - 1) likeliest = Maximum()(likeliest, exponential);
  }
  sum = over_groups(sum, Sum(), pixel, group, scratch);  // NaN if a logit is, whatever the maxima
  const A probability = over_groups(likeliest, Maximum(), pixel, group, scratch) / sum;

  // The first class of that probability. Division may make the next best as probable as the best.
  int best = params.classes;
  for (int c = group; c < params.classes - 1; c += kClassGroups) {
    const A other = exp(logit(c) - largest) / sum;
    if (best == params.classes && (other == probability || other != other)) best = c;
  }
  best = over_groups(best, Minimum(), pixel, group, index_scratch);

  if (group == 0) {
    params.candidates[static_cast<long long>(blockIdx.y) * pixels + index] = {probability, best};
  }
}

// Bits that order the pixels as activation_rank does.
template <typename A>
__device__ __forceinline__ typename RankBits<A>::Type rank_of(const Candidate<A>* candidates,
                                                              int index, int height, int width,
                                                              bool local_maximum_first) {
  const Candidate<A> own = candidates[index];
  A rank = own.probability;
  if (local_maximum_first) {
    bool is_maximum = own.probability >= A(1e-6);
    const int y = index / width, x = index % width;
#pragma unroll
    for (int dy = -1; dy <= 1; ++dy) {
#pragma unroll
      for (int dx = -1; dx <= 1; ++dx) {
        if (y + dy < 0 || y + dy >= height || x + dx < 0 || x + dx >= width) continue;
        const Candidate<A> other = candidates[index + dy * width + dx];
        if (other.best == own.best && other.probability > own.probability) is_maximum = false;
      }
    }
    if (is_maximum) rank += A(1);
  }
  return rank != rank ? RankBits<A>::nan() : RankBits<A>::of(rank);
}

// How many of the `pixels` ranks reach `least`: the same in every thread. `total` must be 0.
template <typename Bits>
__device__ __forceinline__ int count_reaching(const Bits* ranks, int pixels, Bits least,
                                              int* total) {
  int count = 0;
  for (int first = 0; first < pixels; first += kTakeThreads) {
    const int i = first + threadIdx.x;
    count += __popc(__ballot_sync(kFullWarp, i < pixels && ranks[i] >= least));
  }
  if (threadIdx.x % kWarpSize == 0) atomicAdd(total, count);
  __syncthreads();
  return *total;
}

template <typename A, typename Element>
__global__ void __launch_bounds__(kTakeThreads, kSelectionBlocks)
take_queries_kernel(TakeQueriesParams<A, Element> params) {
  using Bits = typename RankBits<A>::Type;
  constexpr int kTrials = RankBits<A>::kHighest + 2;
  constexpr int kWarps = kTakeThreads / kWarpSize;
  __shared__ int totals[kTrials];
  __shared__ __align__(16) unsigned warp_counts[kWarps];  // ranks above, and 65536 times equal ones
  __shared__ int taken[kQueriesPerBlock];

  const int batch = blockIdx.y, pixels = params.height * params.width;
  const Candidate<A>* candidates = params.candidates + static_cast<long long>(batch) * pixels;
  Bits* ranks = shared_memory<Bits>();
  if (params.ranks != nullptr) {
    ranks = static_cast<Bits*>(params.ranks) + static_cast<long long>(batch) * pixels;
  }
  for (int i = threadIdx.x; i < pixels; i += kTakeThreads) {
    ranks[i] = rank_of(candidates, i, params.height, params.width, params.local_maximum_first);
  }
  for (int i = threadIdx.x; i < kTrials; i += kTakeThreads) totals[i] = 0;
  __syncthreads();

  // The largest bits that at least `count` ranks reach; or any that exactly `count` reach.
  Bits least = 0;
  for (int bit = RankBits<A>::kHighest; bit >= 0; --bit) {
    const Bits trial = least | Bits(1) << bit;
    const int reaching = count_reaching(ranks, pixels, trial, &totals[bit]);
    if (reaching >= params.count) least = trial;
    if (reaching == params.count) break;
  }
  const int above = count_reaching(ranks, pixels, least + 1, &totals[kTrials - 1]);
  const int equal_taken = params.count - above;

  // Positions by prefix sums over the pixels, kTakeThreads at a time.
  const int first_query = blockIdx.x * kQueriesPerBlock;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const unsigned lanes_before = (1u << lane) - 1;
  int above_before = 0, equal_before = 0;
  for (int first = 0; first < pixels; first += kTakeThreads) {
    const int i = first + threadIdx.x;
    const bool is_above = i < pixels && ranks[i] > least;
    const bool is_equal = i < pixels && ranks[i] == least;
    const unsigned warp_is_above = __ballot_sync(kFullWarp, is_above);
    const unsigned warp_is_equal = __ballot_sync(kFullWarp, is_equal);
    if (lane == 0) warp_counts[warp] = __popc(warp_is_above) | __popc(warp_is_equal) << 16;
    __syncthreads();
    unsigned before = 0, all = 0;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      if (other == warp) before = all;
      all += warp_counts[other];
    }
    const int own_above = above_before + (before & 0xffff) + __popc(warp_is_above & lanes_before);
    const int own_equal = equal_before + (before >> 16) + __popc(warp_is_equal & lanes_before);
    above_before += all & 0xffff;
    equal_before += all >> 16;
    const int position = own_above + min(own_equal, equal_taken) - first_query;
    const bool is_taken = is_above || (is_equal && own_equal < equal_taken);
    if (is_taken && position >= 0 && position < kQueriesPerBlock) taken[position] = i;
    __syncthreads();
  }

  const int queries = min(kQueriesPerBlock, params.count - first_query);
  const long long first_row = static_cast<long long>(batch) * params.count + first_query;
  for (int i = threadIdx.x; i < queries * params.channels; i += kTakeThreads) {
    // i = (query, channel)
    const int query = i / params.channels, channel = i % params.channels;
    const int y = taken[query] / params.width, x = taken[query] % params.width;
    const auto at = [&](const MapStrides& strides) {
      return batch * strides.batch + channel * strides.channel + y * strides.row +
             x * strides.column;
    };
    const long long target = first_row * params.channels + i;
    params.taken_features[target] = params.features[at(params.feature_strides)];
    params.taken_positions[target] = params.positions[at(params.position_strides)];
  }
  if (threadIdx.x < queries) params.indices[first_row + threadIdx.x] = taken[threadIdx.x];
}

}  // namespace

#ifndef __CUDACC_RTC__

template <typename T>
void launch_find_candidates(const FindCandidatesParams<T>& params, cudaStream_t stream) {
  const dim3 grid(ceil_div(params.height * params.width, kPixelsPerBlock), params.batch);
  launch(find_candidates_kernel<T>, grid, kCandidateThreads, 0, stream, params);
}

// Of one image's ranks; more than a block may ask for has to be in params.ranks.
template <typename A>
size_t rank_bytes(int height, int width) {
  return sizeof(typename RankBits<A>::Type) * height * width;
}

template <typename A, typename Element>
void launch_take_queries(const TakeQueriesParams<A, Element>& params, cudaStream_t stream) {
  const dim3 grid(ceil_div(params.count, kQueriesPerBlock), params.batch);
  const size_t shared = params.ranks != nullptr ? 0 : rank_bytes<A>(params.height, params.width);
  launch(take_queries_kernel<A, Element>, grid, kTakeThreads, shared, stream, params);
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
