// The points of a map that a loss looks at: of many random candidates those where the logits are
// nearest to 0, in ascending order of their number, and further random ones.
// fastinst/ops/uncertain_points.py defines it.
//
// A block owns a map. It copies the map into shared memory, samples it at all candidates, whose
// positions a hash gives, and keeps the bits of each magnitude as the candidate's key: 4 bytes, in
// shared memory where they fit beside the map (150 KB for 37632 candidates: sm_90), else in global
// memory. The largest key to be chosen is found from the top by digits of kDigitBits, whose
// histogram is in shared memory (radix select). Then each warp takes a part of the candidates: it
// counts, and once it knows how many the earlier warps choose, writes its own in order. Nothing but
// integers is added up, so the points are the same on every run.
//
// At 560 maps of 80 x 108, 37632 candidates and 12544 points: 21 million samples of some 90
// instructions, 19 MB read and 56 MB written. Predicted, not measured: 0.15 ms on an H200, by
// instructions and bank conflicts of the gathers; 0.8 ms on a V100, of which 0.5 for the 84 MB of
// keys in global memory.
#pragma once

#include "launch.cuh"
#include "points.cuh"

namespace fastinst {

// The bits of a number's magnitude, which have the magnitudes' order, with NaN last: the first bits
// past infinity's, whichever of its many it is.
template <typename A>
struct MagnitudeKey;
template <>
struct MagnitudeKey<float> {
  using Type = unsigned;
  static constexpr int kBits = 31;
  static __device__ __forceinline__ Type of(float x) {
    return min(__float_as_uint(x) & 0x7fffffffu, 0x7f800001u);
  }
};
template <>
struct MagnitudeKey<double> {
  using Type = unsigned long long;
  static constexpr int kBits = 63;
  static __device__ __forceinline__ Type of(double x) {
    const Type bits = static_cast<Type>(__double_as_longlong(x)) & 0x7fffffffffffffffull;
    return min(bits, Type{0x7ff0000000000001ull});
  }
};

template <typename T>
struct UncertainPointsParams {
  using Key = typename MagnitudeKey<Accumulate<T>>::Type;
  const T* logits;  // [maps, height, width]
  const long long* seeds;  // [maps]
  int maps, height, width;
  int points, candidates, important;
  bool copy_map;  // into shared memory
  Key* keys;  // [maps, candidates], or null for shared memory
  Point<float>* chosen;  // [maps, points]
};

namespace {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == 2 * kSelectThreads, "a thread scans two digits");

// What a block of kSelectThreads needs to select with.
struct Selection {
  int counts[kDigits];
  int warp_sums[2][kSelectWarps];
  int digit, wanted;
};

// Of the warps before the caller's, whose lanes all get it.
__device__ __forceinline__ int sum_before_warp(const int (&warp_sums)[kSelectWarps]) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  return warp_reduce(lane < warp ? warp_sums[lane] : 0, Sum());
}

// Finds the digit that the `wanted`-th smallest of the counted keys has, and the key's place among
// the keys of that digit. Leaves the counts at 0.
__device__ __forceinline__ void find_digit(Selection& selection, int wanted) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  int2& counts = reinterpret_cast<int2*>(selection.counts)[threadIdx.x];
  const int first = counts.x, both = counts.x + counts.y;
  counts = make_int2(0, 0);
  int through = both;  // lanes 0 .. lane
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, through, distance);
    if (lane >= distance) through += other;
  }
  if (lane == kWarpSize - 1) selection.warp_sums[0][warp] = through;
  __syncthreads();
  const int before = sum_before_warp(selection.warp_sums[0]) + through - both;
  if (before < wanted && wanted <= before + both) {
    const bool is_second = wanted > before + first;
    selection.digit = 2 * threadIdx.x + is_second;
    selection.wanted = wanted - before - (is_second ? first : 0);
  }
  __syncthreads();
}

// The `wanted`-th smallest of the keys, counted from 1. Makes `wanted` its place among equal ones.
template <int kBits, typename Key>
__device__ __forceinline__ Key find_smallest(const Key* keys, int count, int& wanted,
                                             Selection& selection) {
  Key limit = 0;  // its highest bits, down to `shift`
  for (int shift = kBits; shift > 0;) {
    const int bits = min(kDigitBits, shift);
    shift -= bits;
    for (int i = threadIdx.x; i < count; i += kSelectThreads) {
      const Key key = keys[i] >> shift;
      if (key >> bits == limit) atomicAdd(&selection.counts[key & ((1u << bits) - 1)], 1);
    }
    __syncthreads();
    find_digit(selection, wanted);
    limit = limit << bits | static_cast<Key>(selection.digit);
    wanted = selection.wanted;
  }
  return limit;
}

// Writes the points of the keys below the limit and of the first `equal_wanted` that equal it.
template <typename Key>
__device__ __forceinline__ void write_chosen(const Key* keys, int count, Key limit,
                                             int equal_wanted, unsigned long long seed,
                                             Point<float>* chosen, Selection& selection) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int part = round_up(ceil_div(count, kSelectWarps), kWarpSize);
  const int end = min((warp + 1) * part, count);
  int below = 0, equal = 0;
  for (int i = warp * part + lane; i < end; i += kWarpSize) {
    below += keys[i] < limit;
    equal += keys[i] == limit;
  }
  below = warp_reduce(below, Sum());
  equal = warp_reduce(equal, Sum());
  if (lane == 0) {
    selection.warp_sums[0][warp] = below;
    selection.warp_sums[1][warp] = equal;
  }
  __syncthreads();

  int below_before = sum_before_warp(selection.warp_sums[0]);
  int equal_before = sum_before_warp(selection.warp_sums[1]);
  const unsigned lanes_before = (1u << lane) - 1;
  for (int first = warp * part; first < end; first += kWarpSize) {
    const int i = first + lane;
    const bool is_below = i < end && keys[i] < limit, is_equal = i < end && keys[i] == limit;
    const unsigned all_below = __ballot_sync(kFullWarp, is_below);
    const unsigned all_equal = __ballot_sync(kFullWarp, is_equal);
    const int own_equal = equal_before + __popc(all_equal & lanes_before);
    const int place =
        below_before + __popc(all_below & lanes_before) + min(own_equal, equal_wanted);
    if (is_below || (is_equal && own_equal < equal_wanted)) chosen[place] = random_point(seed, i);
    below_before += __popc(all_below);
    equal_before += __popc(all_equal);
  }
}

template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
uncertain_points_kernel(UncertainPointsParams<T> params) {
  using A = Accumulate<T>;
  using Magnitude = MagnitudeKey<A>;
  using Key = typename Magnitude::Type;
  __shared__ Selection selection;
  const int map = blockIdx.x, pixels = params.height * params.width;
  const unsigned long long seed = params.seeds[map];
  Point<float>* chosen = params.chosen + static_cast<long long>(map) * params.points;
  for (int i = params.important + threadIdx.x; i < params.points; i += kSelectThreads) {
    chosen[i] = random_point(seed, params.candidates + i - params.important);
  }
  if (params.important == 0) return;

  unsigned char* shared = shared_memory<unsigned char>();
  const T* logits = params.logits + static_cast<long long>(map) * pixels;
  if (params.copy_map) {
    copy_by_block<kSelectThreads>(logits, pixels, reinterpret_cast<T*>(shared));
    logits = reinterpret_cast<T*>(shared);
    shared += padded_bytes<T>(pixels);
  }
  Key* keys = params.keys != nullptr
                  ? params.keys + static_cast<long long>(map) * params.candidates
                  : reinterpret_cast<Key*>(shared);
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) selection.counts[i] = 0;
  __syncthreads();

  for (int i = threadIdx.x; i < params.candidates; i += kSelectThreads) {
    const Point<float> point = random_point(seed, i);
    const Corners<A> corners({point.x, point.y}, params.height, params.width);
    keys[i] = Magnitude::of(sample_map(logits, params.width, corners));
  }

  // Needs no barrier before: there, threads count the keys that they have written here.
  int wanted = params.important;
  const Key limit = find_smallest<Magnitude::kBits>(keys, params.candidates, wanted, selection);
  write_chosen(keys, params.candidates, limit, wanted, seed, chosen, selection);
}

}  // namespace

#ifndef __CUDACC_RTC__

constexpr size_t kSelectStaticBytes = sizeof(Selection);

template <typename T>
size_t shared_map_bytes(int height, int width) {
  return padded_bytes<T>(static_cast<size_t>(height) * width);
}

template <typename T>
size_t shared_key_bytes(int candidates) {
  return padded_bytes<typename UncertainPointsParams<T>::Key>(candidates);
}

template <typename T>
void launch_uncertain_points(const UncertainPointsParams<T>& params, cudaStream_t stream) {
  const size_t shared =
      (params.copy_map ? shared_map_bytes<T>(params.height, params.width) : 0) +
      (params.keys == nullptr ? shared_key_bytes<T>(params.candidates) : 0);
  launch(uncertain_points_kernel<T>, params.maps, kSelectThreads, shared, stream, params);
}

#endif  // __CUDACC_RTC__

}  // namespace fastinst
