// Runs CUDA kernels on the CPU: each thread of a block is a fiber, blocks run one after the other.
// The headers in include/ translate CUDA's names into these few functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace cuda_emulator {

struct Dimensions {
  unsigned x, y, z;
};

// Where in a kernel a thread waits. Default arguments take it from the caller's line.
struct Place {
  const char* file;
  int line;
};

struct Launch {
  Dimensions grid, block;
  std::size_t dynamic_shared_bytes;
  const void* kernel;
};

// Runs `thread_body` once for every thread of the grid. Throws std::runtime_error on what CUDA
// forbids or leaves undefined: see README.md.
void run(const Launch& launch, const std::function<void()>& thread_body);

// For the device side; all but fail() may switch to another thread before they return.
unsigned char* dynamic_shared_memory();
int barrier(int value, Place place);  // how many threads of the block brought a value other than 0
unsigned lane();

// Waits for all lanes of `mask`, who must come with the same `name`; then `resolve` runs once, with
// each lane's payload (null for lanes outside the mask).
void warp_collective(const char* name, unsigned mask, void* payload,
                     void (*resolve)(void** payloads), Place place);
void switch_thread();  // lets the schedule put another thread first, for atomics
[[noreturn]] void fail(const std::string& message);

// Copies of __pipeline_memcpy_async are made when they are waited for, as late as CUDA may.
// The last `zero_fill` of the bytes become 0.
void copy_later(void* target, const void* source, std::size_t bytes, std::size_t zero_fill);
void commit_copies();
void wait_for_copies(std::size_t groups_left);

}  // namespace cuda_emulator
