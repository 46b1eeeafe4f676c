// Asynchronous copies to shared memory.
#pragma once

inline void __pipeline_memcpy_async(void* target, const void* source, size_t bytes,
                                    size_t zero_fill = 0) {
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    cuda_emulator::fail("__pipeline_memcpy_async of other than 4, 8 or 16 bytes");
  }
  if ((reinterpret_cast<uintptr_t>(target) | reinterpret_cast<uintptr_t>(source)) % bytes != 0) {
    cuda_emulator::fail("__pipeline_memcpy_async at a misaligned address");
  }
  cuda_emulator::copy_later(target, source, bytes, zero_fill);
}
inline void __pipeline_commit() { cuda_emulator::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups_left) {
  cuda_emulator::wait_for_copies(groups_left);
}
