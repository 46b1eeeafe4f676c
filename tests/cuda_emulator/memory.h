// Memory of the emulated machine: stacks of fibers, shared memory.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_emulator {

struct Stack {
  void* base;
  std::size_t bytes;
};
Stack fiber_stack(std::size_t thread);  // 0 .. 1023

// A block's dynamic shared memory, which ends at a page that faults.
class DynamicShared {
 public:
  void resize(std::size_t bytes);
  void fill(unsigned char garbage);
  unsigned char* begin() const { return begin_; }

 private:
  unsigned char* begin_ = nullptr;
  std::size_t bytes_ = 0;
};

// The __shared__ variables of the library that `kernel` is in.
void fill_static_shared(const void* kernel, unsigned char garbage);

}  // namespace cuda_emulator
