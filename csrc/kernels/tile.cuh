// The one matrix product of all kernels: a warp's tile C[kRows, kColumns] += A[kRows, depth] *
// B[depth, kColumns], with A and B in shared memory and C in the warp's registers, accumulated in
// Accumulate<T>. A block that owns more than one tile gives each warp its own and lets them read
// the same A or B.
//
// 16-bit types go to the tensor cores by wmma, which exists from sm_70 on (bfloat16 from sm_80 on;
// below, its code is plain arithmetic, and no host launches it). float and double use plain
// arithmetic: TF32 would lose the 13 bits that a kernel's error is measured in. There a lane owns
// the rows `lane / 8 + 4 i` and the columns `lane % 8 + 8 j`, so that at any depth a warp reads
// four neighbours of A and eight of B.
//
// What callers owe: kRows and kColumns multiples of 16, depth a multiple of 16; A and B at
// multiples of 32 bytes; strides in elements that are multiples of 16 bytes. kRowPadding<T> added
// to the length of a row keeps a warp's accesses in different banks. Which lane holds which element
// is not part of the interface: apply() treats all alike, store() writes C out.
#pragma once

#include <mma.h>

#include "common.cuh"

namespace fastinst {

// 16 bytes: consecutive rows then start in different groups of four banks.
template <typename T>
constexpr int kRowPadding = 16 / sizeof(T);

// How a matrix lies in memory: element (i, j) at i * stride + j, or at i + j * stride.
enum class Order { kRowMajor, kColumnMajor };

template <typename T>
struct HasTensorCores {
  static constexpr bool kValue = false;
};
template <>
struct HasTensorCores<__half> {
  static constexpr bool kValue = true;
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct HasTensorCores<__nv_bfloat16> {
  static constexpr bool kValue = true;
};
#endif

template <typename T, int kRows, int kColumns, bool kTensorCores = HasTensorCores<T>::kValue>
class WarpTile;

template <typename T, int kRows, int kColumns>
class WarpTile<T, kRows, kColumns, true> {
  static_assert(kRows % 16 == 0 && kColumns % 16 == 0, "wmma multiplies 16 x 16 x 16");

 public:
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) nvcuda::wmma::fill_fragment(c_[i][j], 0.0f);
    }
  }

  template <int kDepth, Order kOrderA, Order kOrderB>
  __device__ __forceinline__ void multiply_add(const T* a, int stride_a, const T* b, int stride_b) {
    static_assert(kDepth % 16 == 0, "wmma multiplies 16 x 16 x 16");
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, Layout<kOrderB>>
          b_tiles[kColumns / 16];
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        nvcuda::wmma::load_matrix_sync(b_tiles[j], b + offset<kOrderB>(k, 16 * j, stride_b),
                                       stride_b);
      }
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, Layout<kOrderA>> a_tile;
        nvcuda::wmma::load_matrix_sync(a_tile, a + offset<kOrderA>(16 * i, k, stride_a), stride_a);
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          nvcuda::wmma::mma_sync(c_[i][j], a_tile, b_tiles[j], c_[i][j]);
        }
      }
    }
  }

  // value = function(value) for every element.
  template <typename Function>
  __device__ __forceinline__ void apply(Function function) {
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
#pragma unroll
        for (int e = 0; e < c_[i][j].num_elements; ++e) c_[i][j].x[e] = function(c_[i][j].x[e]);
      }
    }
  }

  // To row-major shared or global memory, under the alignment of A and B.
  __device__ __forceinline__ void store(float* c, int stride) const {
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        nvcuda::wmma::store_matrix_sync(c + 16 * i * stride + 16 * j, c_[i][j], stride,
                                        nvcuda::wmma::mem_row_major);
      }
    }
  }

 private:
  template <bool kIsRowMajor, typename Unused = void>
  struct LayoutOf {
    using Type = nvcuda::wmma::row_major;
  };
  template <typename Unused>
  struct LayoutOf<false, Unused> {
    using Type = nvcuda::wmma::col_major;
  };
  template <Order kOrder>
  using Layout = typename LayoutOf<kOrder == Order::kRowMajor>::Type;

  template <Order kOrder>
  static __device__ __forceinline__ int offset(int row, int column, int stride) {
    return kOrder == Order::kRowMajor ? row * stride + column : column * stride + row;
  }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>
      c_[kRows / 16][kColumns / 16];
};

template <typename T, int kRows, int kColumns>
class WarpTile<T, kRows, kColumns, false> {
  static constexpr int kLaneRows = 4, kLaneColumns = 8;
  static constexpr int kStep = Packed<T>::kSize;  // depth covered by one load along it

 public:
  __device__ __forceinline__ void clear() {
    apply([](Accumulate<T>) { return Accumulate<T>(0); });
  }

  template <int kDepth, Order kOrderA, Order kOrderB>
  __device__ __forceinline__ void multiply_add(const T* a, int stride_a, const T* b, int stride_b) {
#pragma unroll 1
    for (int k = 0; k < kDepth; k += kStep) {
      Packed<T> b_values[kColumns / kLaneColumns];
#pragma unroll
      for (int j = 0; j < kColumns / kLaneColumns; ++j) {
        const int column = lane_column() + kLaneColumns * j;
        b_values[j] = along_depth<kOrderB == Order::kColumnMajor>(b, column, k, stride_b);
      }
#pragma unroll
      for (int i = 0; i < kRows / kLaneRows; ++i) {
        const int row = lane_row() + kLaneRows * i;
        const Packed<T> a_values = along_depth<kOrderA == Order::kRowMajor>(a, row, k, stride_a);
#pragma unroll
        for (int j = 0; j < kColumns / kLaneColumns; ++j) {
#pragma unroll
          for (int step = 0; step < kStep; ++step) {
            c_[i][j] += widen(a_values[step]) * widen(b_values[j][step]);
          }
        }
      }
    }
  }

  template <typename Function>
  __device__ __forceinline__ void apply(Function function) {
#pragma unroll
    for (int i = 0; i < kRows / kLaneRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / kLaneColumns; ++j) c_[i][j] = function(c_[i][j]);
    }
  }

  __device__ __forceinline__ void store(Accumulate<T>* c, int stride) const {
#pragma unroll
    for (int i = 0; i < kRows / kLaneRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / kLaneColumns; ++j) {
        c[(lane_row() + kLaneRows * i) * stride + lane_column() + kLaneColumns * j] = c_[i][j];
      }
    }
  }

 private:
  static __device__ __forceinline__ int lane_row() {
    return threadIdx.x % kWarpSize / kLaneColumns;
  }
  static __device__ __forceinline__ int lane_column() { return threadIdx.x % kLaneColumns; }

  // kStep values of one row of A, or column of B, from depth k on.
  template <bool kIsContiguous>
  static __device__ __forceinline__ Packed<T> along_depth(const T* matrix, int index, int k,
                                                          int stride) {
    if constexpr (kIsContiguous) {
      return Packed<T>::load(matrix + index * stride + k);
    } else {
      Packed<T> values;
#pragma unroll
      for (int step = 0; step < kStep; ++step) values[step] = matrix[(k + step) * stride + index];
      return values;
    }
  }

  Accumulate<T> c_[kRows / kLaneRows][kColumns / kLaneColumns];
};

}  // namespace fastinst
