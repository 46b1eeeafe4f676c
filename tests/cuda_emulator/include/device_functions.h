// Barriers, warp operations and bit operations.
#pragma once

#define CUDA_EMULATOR_PLACE                                                       \
  cuda_emulator::Place place = { __builtin_FILE(), __builtin_LINE() }

inline void __syncthreads(CUDA_EMULATOR_PLACE) { cuda_emulator::barrier(0, place); }
inline int __syncthreads_count(int value, CUDA_EMULATOR_PLACE) {
  return cuda_emulator::barrier(value, place);
}
inline int __syncthreads_or(int value, CUDA_EMULATOR_PLACE) {
  return cuda_emulator::barrier(value, place) > 0;
}
inline int __syncthreads_and(int value, CUDA_EMULATOR_PLACE) {
  return cuda_emulator::barrier(!value, place) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATOR_PLACE) {
  cuda_emulator::warp_collective("__syncwarp", mask, nullptr, [](void**) {}, place);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace cuda_emulator {

// A lane's part in a shuffle. `source` is the lane to read, or -1 to keep the own value.
template <typename T>
struct Shuffle {
  T value, result;
  int source;
};

template <typename T>
T shuffle(const char* name, unsigned mask, T value, int source, int width, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2, "not a type CUDA shuffles");
  if (width <= 0 || width > 32 || (width & (width - 1))) fail("shuffle width is no power of two");
  Shuffle<T> request{value, value, source};
  warp_collective(name, mask, &request, [](void** payloads) {
    for (int lane = 0; lane < 32; ++lane) {
      auto* request = static_cast<Shuffle<T>*>(payloads[lane]);
      if (request == nullptr || request->source < 0) continue;
      auto* source = static_cast<Shuffle<T>*>(payloads[request->source]);
      if (source == nullptr) fail("a shuffle reads a lane that is not in its mask");
      request->result = source->value;
    }
  }, place);
  return request.result;
}

struct Vote {
  bool value;
  unsigned ballot;
};

inline unsigned vote(const char* name, unsigned mask, bool value, Place place) {
  Vote request{value, 0};
  warp_collective(name, mask, &request, [](void** payloads) {
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane) {
      auto* request = static_cast<Vote*>(payloads[lane]);
      if (request != nullptr && request->value) ballot |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (payloads[lane] != nullptr) static_cast<Vote*>(payloads[lane])->ballot = ballot;
    }
  }, place);
  return request.ballot;
}

}  // namespace cuda_emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMULATOR_PLACE) {
  const int first = cuda_emulator::lane() / width * width;
  return cuda_emulator::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), width,
                                place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_EMULATOR_PLACE) {
  const int lane = cuda_emulator::lane(), source = lane ^ lanes;
  const bool inside = source < lane / width * width + width;
  return cuda_emulator::shuffle("__shfl_xor_sync", mask, value, inside ? source : -1, width, place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   CUDA_EMULATOR_PLACE) {
  const int lane = cuda_emulator::lane(), source = lane + static_cast<int>(distance);
  const bool inside = source < lane / width * width + width;
  return cuda_emulator::shuffle("__shfl_down_sync", mask, value, inside ? source : -1, width,
                                place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, CUDA_EMULATOR_PLACE) {
  const int lane = cuda_emulator::lane(), source = lane - static_cast<int>(distance);
  const bool inside = source >= lane / width * width;
  return cuda_emulator::shuffle("__shfl_up_sync", mask, value, inside ? source : -1, width, place);
}

inline unsigned __ballot_sync(unsigned mask, int value, CUDA_EMULATOR_PLACE) {
  return cuda_emulator::vote("__ballot_sync", mask, value != 0, place);
}
inline int __any_sync(unsigned mask, int value, CUDA_EMULATOR_PLACE) {
  return cuda_emulator::vote("__any_sync", mask, value != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int value, CUDA_EMULATOR_PLACE) {
  return cuda_emulator::vote("__all_sync", mask, value == 0, place) == 0;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(bits); }
inline unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (bits >> bit & 1u) << (31 - bit);
  return reversed;
}

template <typename T>
T __ldg(const T* address) { return *address; }
template <typename T>
T __ldcs(const T* address) { return *address; }
template <typename T>
T __ldcg(const T* address) { return *address; }
template <typename T>
void __stcs(T* address, T value) { *address = value; }
template <typename T>
void __stcg(T* address, T value) { *address = value; }
[[noreturn]] inline void __trap() { cuda_emulator::fail("__trap"); }
