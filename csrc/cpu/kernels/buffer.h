// Scratch memory of a kernel: uninitialised numbers from a cache line's beginning on.

#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace fastinst {
namespace FASTINST_ISA {

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {
    if (data_ == nullptr && count > 0) abort();
  }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator T*() { return data_; }

 private:
  T* data_;
};

template <typename T>
inline void fill_zero(T* to, int64_t count) {
  __builtin_memset(to, 0, count * sizeof(T));
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
