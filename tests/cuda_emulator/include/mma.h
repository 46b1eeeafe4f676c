// nvcuda::wmma. Which lane holds which elements is scrambled on purpose: CUDA leaves it open, and
// code that relies on it must fail here.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int kM, int kN, int kK, typename T, typename Layout = void>
class fragment {
  static constexpr bool kIsA = std::is_same<Use, matrix_a>::value;
  static constexpr bool kIsB = std::is_same<Use, matrix_b>::value;

 public:
  static constexpr int kRows = kIsB ? kK : kM;
  static constexpr int kColumns = kIsA ? kK : kN;
  static constexpr int kElements = kRows * kColumns / 32;
  static constexpr int num_elements = kIsA || kIsB ? 2 * kElements : kElements;
  static constexpr bool kRowMajor = std::is_same<Layout, row_major>::value;
  T x[num_elements];

  // The index row * kColumns + column of an element. An operand holds each twice, as on sm_70.
  static int element(int lane, int slot) {
    const int flat = slot % kElements * 32 + lane;
    return (flat * (kIsA ? 37 : kIsB ? 59 : 85) + 11) % (32 * kElements);
  }
};

}  // namespace wmma
}  // namespace nvcuda

namespace cuda_emulator {

template <typename T>
struct MatrixAccess {
  const T* address;
  unsigned stride;
};

// Every lane must bring the same address and stride; both have to be aligned as wmma demands.
template <typename T>
void check_matrix_access(const char* name, const T* address, unsigned stride, Place place) {
  if (reinterpret_cast<std::uintptr_t>(address) % 32 != 0) {
    fail("wmma: address is no multiple of 32 bytes");
  }
  if (stride * sizeof(T) % 16 != 0) fail("wmma: leading dimension is no multiple of 16 bytes");
  MatrixAccess<T> access{address, stride};
  warp_collective(name, 0xffffffffu, &access, [](void** payloads) {
    auto* first = static_cast<MatrixAccess<T>*>(payloads[0]);
    for (int lane = 1; lane < 32; ++lane) {
      auto* other = static_cast<MatrixAccess<T>*>(payloads[lane]);
      if (other->address != first->address || other->stride != first->stride) {
        fail("wmma: lanes disagree on address or leading dimension");
      }
    }
  }, place);
}

// Puts a matrix together from the fragments of all lanes; of_lane(lane) gives one.
template <typename Fragment, typename OfLane>
void gather(OfLane of_lane, float* matrix) {
  bool seen[Fragment::kRows * Fragment::kColumns] = {};
  for (int lane = 0; lane < 32; ++lane) {
    const Fragment& fragment = *of_lane(lane);
    for (int slot = 0; slot < Fragment::num_elements; ++slot) {
      const int element = Fragment::element(lane, slot);
      const float value = fragment.x[slot];
      if (seen[element] && std::memcmp(&matrix[element], &value, sizeof value) != 0) {
        fail("wmma: the copies of an operand's element differ");
      }
      matrix[element] = value;
      seen[element] = true;
    }
  }
}

}  // namespace cuda_emulator

namespace nvcuda {
namespace wmma {

template <int kColumns>
unsigned offset(int element, unsigned stride, layout_t layout) {
  const int row = element / kColumns, column = element % kColumns;
  return layout == mem_row_major ? row * stride + column : column * stride + row;
}

template <typename Fragment, typename T>
void fill_fragment(Fragment& fragment, T value) {
  for (int slot = 0; slot < Fragment::num_elements; ++slot) fragment.x[slot] = value;
}

template <typename Use, int kM, int kN, int kK, typename T, typename Layout>
void load_matrix_sync(fragment<Use, kM, kN, kK, T, Layout>& fragment, const T* address,
                      unsigned stride, CUDA_EMULATOR_PLACE) {
  cuda_emulator::check_matrix_access("load_matrix_sync", address, stride, place);
  for (int slot = 0; slot < fragment.num_elements; ++slot) {
    const int element = fragment.element(cuda_emulator::lane(), slot);
    const layout_t layout = fragment.kRowMajor ? mem_row_major : mem_col_major;
    fragment.x[slot] = address[offset<fragment.kColumns>(element, stride, layout)];
  }
}

template <int kM, int kN, int kK, typename T>
void load_matrix_sync(fragment<accumulator, kM, kN, kK, T>& fragment, const T* address,
                      unsigned stride, layout_t layout, CUDA_EMULATOR_PLACE) {
  cuda_emulator::check_matrix_access("load_matrix_sync", address, stride, place);
  for (int slot = 0; slot < fragment.num_elements; ++slot) {
    const int element = fragment.element(cuda_emulator::lane(), slot);
    fragment.x[slot] = address[offset<kN>(element, stride, layout)];
  }
}

template <int kM, int kN, int kK, typename T>
void store_matrix_sync(T* address, const fragment<accumulator, kM, kN, kK, T>& fragment,
                       unsigned stride, layout_t layout, CUDA_EMULATOR_PLACE) {
  cuda_emulator::check_matrix_access<T>("store_matrix_sync", address, stride, place);
  for (int slot = 0; slot < fragment.num_elements; ++slot) {
    const int element = fragment.element(cuda_emulator::lane(), slot);
    address[offset<kN>(element, stride, layout)] = fragment.x[slot];
  }
}

template <int kM, int kN, int kK, typename T, typename LayoutA, typename LayoutB, typename D,
          typename C>
void mma_sync(fragment<accumulator, kM, kN, kK, D>& d,
              const fragment<matrix_a, kM, kN, kK, T, LayoutA>& a,
              const fragment<matrix_b, kM, kN, kK, T, LayoutB>& b,
              const fragment<accumulator, kM, kN, kK, C>& c, CUDA_EMULATOR_PLACE) {
  using FragmentA = fragment<matrix_a, kM, kN, kK, T, LayoutA>;
  using FragmentB = fragment<matrix_b, kM, kN, kK, T, LayoutB>;
  using FragmentC = fragment<accumulator, kM, kN, kK, C>;
  using FragmentD = fragment<accumulator, kM, kN, kK, D>;
  struct Product {
    FragmentD* d;
    const FragmentA* a;
    const FragmentB* b;
    const FragmentC* c;
  } product{&d, &a, &b, &c};
  cuda_emulator::warp_collective("mma_sync", 0xffffffffu, &product, [](void** payloads) {
    float a[kM * kK], b[kK * kN], c[kM * kN];
    const auto of = [&](int lane) { return static_cast<Product*>(payloads[lane]); };
    cuda_emulator::gather<FragmentA>([&](int lane) { return of(lane)->a; }, a);
    cuda_emulator::gather<FragmentB>([&](int lane) { return of(lane)->b; }, b);
    cuda_emulator::gather<FragmentC>([&](int lane) { return of(lane)->c; }, c);
    for (int row = 0; row < kM; ++row) {
      for (int k = 0; k < kK; ++k) {
        for (int column = 0; column < kN; ++column) {
          c[row * kN + column] += a[row * kK + k] * b[k * kN + column];
        }
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      FragmentD& fragment = *of(lane)->d;
      for (int slot = 0; slot < fragment.num_elements; ++slot) {
        fragment.x[slot] = c[fragment.element(lane, slot)];
      }
    }
  }, place);
}

}  // namespace wmma
}  // namespace nvcuda
