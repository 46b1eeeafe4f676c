// Tasks handed out one by one, so that threads that get easy ones, or fast cores, do more of them.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace fastinst {

// Calls task(i) once for each i in [0, count), on PyTorch's threads.
template <typename Task>
void for_each_task(int64_t count, const Task& task) {
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) task(i);
  });
}

}  // namespace fastinst
