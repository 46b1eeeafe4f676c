// Entries for tests/test_deform_conv2d_cuda.py: the launchers with plain arguments, and workspaces
// for them. `geometry` is the first 17 numbers of DeformGeometry; `strides` are those of offset,
// then of mask.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/deform_conv2d_backward_data.cuh"
#include "kernels/deform_conv2d_backward_weight.cuh"
#include "kernels/deform_conv2d_forward.cuh"

using namespace fastinst;

template <typename T>
Sampling<T> sampling(const int* geometry, void* offset, void* mask, const int64_t* strides,
                     bool is_wide) {
  Sampling<T> sampling{};
  std::copy(geometry, geometry + 17, reinterpret_cast<int*>(&sampling.geometry));
  sampling.geometry.complete();
  sampling.offset = {{offset, is_wide}, strides[0], strides[1], strides[2], strides[3]};
  sampling.mask = {{mask, is_wide}, strides[4], strides[5], strides[6], strides[7]};
  return sampling;
}

// Of NaN, so that what is read without being written shows, as does what is written beyond its end.
template <typename Scalar>
struct Workspace {
  explicit Workspace(int64_t size) : memory(size + 2 * kMargin, NAN) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    begin = memory.data() + (128 - address % 128) / sizeof(Scalar);
    end = begin + size;
  }
  void check() const {
    for (const Scalar* value = end; value < memory.data() + memory.size(); ++value) {
      if (!std::isnan(*value)) throw std::runtime_error("the workspace is too small");
    }
  }
  static constexpr int kMargin = 4096;
  std::vector<Scalar> memory;
  Scalar *begin, *end;
};

template <typename T>
void forward(const int* geometry, void* offset, void* mask, const int64_t* strides, bool is_wide,
             const T* input, const T* weight, void* bias, T* output, bool channels_last,
             bool relu) {
  const auto samples = sampling<T>(geometry, offset, mask, strides, is_wide);
  Workspace<Accumulate<T>> workspace(deform_forward_workspace<T>(samples.geometry));
  launch_deform_forward<T>({samples, input, weight, {bias, is_wide}, workspace.begin, output,
                            channels_last, relu}, nullptr);
  workspace.check();
}

template <typename T>
void backward(const int* geometry, void* offset, void* mask, const int64_t* strides, bool is_wide,
              const T* grad, const T* input, const T* weight, Accumulate<T>* grad_input,
              void* grad_offset, void* grad_mask, void* grad_weight) {
  const auto samples = sampling<T>(geometry, offset, mask, strides, is_wide);
  launch_deform_backward_data<T>({samples, grad, input, weight, grad_input,
                                  {grad_offset, is_wide}, {grad_mask, is_wide}}, nullptr);
  Workspace<Accumulate<T>> workspace(deform_backward_weight_workspace<T>(samples.geometry));
  launch_deform_backward_weight<T>({samples, grad, input, workspace.begin,
                                    {grad_weight, is_wide}}, nullptr);
  workspace.check();
}
