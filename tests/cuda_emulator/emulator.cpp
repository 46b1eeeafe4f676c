// Fibers, their schedule and what may go wrong. A fiber starts by swapcontext and is then switched
// by _setjmp and _longjmp, which spare the system calls of swapcontext.
#include "emulator.h"

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <algorithm>
#include <deque>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ucontext.h>

#include "cuda_runtime.h"
#include "faults.h"
#include "memory.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {
namespace {

enum class State { kReady, kAtBarrier, kAtCollective, kFinished };

struct Copy {
  void* target;
  const void* source;
  std::size_t bytes, zero_fill;
};

struct Thread {
  State state;
  bool started;
  uint3 index;
  jmp_buf context;
  Place place;  // of the last barrier or warp operation
  int barrier_value, barrier_result;
  const char* collective;
  unsigned mask;
  void* payload;
  std::deque<std::vector<Copy>> copies;  // groups, of which the last is not committed
};

// Threads run in ascending order, in descending order, or in one drawn anew at every pass.
enum Schedule { kForward, kReverse, kRandom };

struct Machine {
  int schedule = kForward;
  std::mt19937 random;
  const std::function<void()>* thread_body = nullptr;
  std::vector<Thread> threads;
  Thread* current = nullptr;
  unsigned finished = 0;
  jmp_buf scheduler;
  sigjmp_buf failure;
  std::string message;
  bool running = false;
  DynamicShared dynamic_shared;
};
Machine machine;

std::string describe(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string describe(const Place& place) {
  if (place.file == nullptr) return "the start";
  return std::string(place.file) + ":" + std::to_string(place.line);
}

[[noreturn]] void abandon(const std::string& message) {
  machine.message = message;
  siglongjmp(machine.failure, 1);
}

std::string of_current_thread() {
  return " in thread " + describe(machine.current->index) + " of block " + describe(blockIdx) +
         ", after " + describe(machine.current->place);
}

void switch_to_scheduler() {
  if (_setjmp(machine.current->context) == 0) _longjmp(machine.scheduler, 1);
}

void fiber_main() {
  (*machine.thread_body)();
  Thread& thread = *machine.current;
  const auto has_copies = [](const auto& group) { return !group.empty(); };
  if (std::any_of(thread.copies.begin(), thread.copies.end(), has_copies)) {
    fail("ends before its asynchronous copies were waited for");
  }
  thread.state = State::kFinished;
  ++machine.finished;
  _longjmp(machine.scheduler, 1);
}

void resume(Thread& thread) {
  machine.current = &thread;
  threadIdx = thread.index;
  if (_setjmp(machine.scheduler) != 0) return;
  if (thread.started) _longjmp(thread.context, 1);
  thread.started = true;
  ucontext_t fiber, here;
  getcontext(&fiber);
  const Stack stack = fiber_stack(&thread - machine.threads.data());
  fiber.uc_stack.ss_sp = stack.base;
  fiber.uc_stack.ss_size = stack.bytes;
  fiber.uc_link = nullptr;
  makecontext(&fiber, fiber_main, 0);
  swapcontext(&here, &fiber);
}

std::string describe_deadlock() {
  std::string text = "threads wait for each other for ever in block " + describe(blockIdx) + ":";
  std::string last;
  for (const Thread& thread : machine.threads) {
    std::string what = " has returned";
    if (thread.state == State::kAtBarrier) what = " is at __syncthreads, " + describe(thread.place);
    if (thread.state == State::kAtCollective) {
      char mask[16];
      std::snprintf(mask, sizeof mask, "%08x", thread.mask);
      what = std::string(" is at ") + thread.collective + " with mask " + mask + ", " +
             describe(thread.place);
    }
    if (what != last) text += "\n  from thread " + describe(thread.index) + " on, each" + what;
    last = what;
  }
  return text;
}

void run_block() {
  const unsigned count = machine.threads.size();
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = machine.schedule == kReverse ? count - 1 - i : i;
  machine.finished = 0;
  while (machine.finished < count) {
    if (machine.schedule >= kRandom) std::shuffle(order.begin(), order.end(), machine.random);
    bool progress = false;
    for (unsigned i : order) {
      if (machine.threads[i].state != State::kReady) continue;
      resume(machine.threads[i]);
      progress = true;
    }
    if (!progress) abandon(describe_deadlock());
  }
}

void start_block(const Launch& launch, const Dimensions& block) {
  blockIdx = {block.x, block.y, block.z};
  unsigned flat = 0;
  for (unsigned z = 0; z < launch.block.z; ++z) {
    for (unsigned y = 0; y < launch.block.y; ++y) {
      for (unsigned x = 0; x < launch.block.x; ++x) {
        Thread& thread = machine.threads[flat++];
        thread.state = State::kReady;
        thread.started = false;
        thread.index = {x, y, z};
        thread.place = {nullptr, 0};
        thread.copies.clear();
      }
    }
  }
  const unsigned char garbage = machine.schedule == kForward ? 0xff : 0x7f;
  machine.dynamic_shared.fill(garbage);
  fill_static_shared(launch.kernel, garbage);
}

}  // namespace

void run(const Launch& launch, const std::function<void()>& thread_body) {
  if (machine.running) throw std::runtime_error("a kernel cannot launch a kernel");
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  machine.thread_body = &thread_body;
  machine.threads.assign(threads, Thread{});
  machine.dynamic_shared.resize(launch.dynamic_shared_bytes);
  gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);
  blockDim = dim3(launch.block.x, launch.block.y, launch.block.z);
  const FaultHandlers handlers(fail);
  machine.running = true;
  if (sigsetjmp(machine.failure, 1) == 0) {
    for (std::uint64_t i = 0; i < blocks; ++i) {
      const std::uint64_t flat = machine.schedule == kForward ? i : blocks - 1 - i;
      start_block(launch, {static_cast<unsigned>(flat % launch.grid.x),
                           static_cast<unsigned>(flat / launch.grid.x % launch.grid.y),
                           static_cast<unsigned>(flat / launch.grid.x / launch.grid.y)});
      run_block();
    }
    machine.running = false;
    return;
  }
  machine.running = false;
  throw std::runtime_error(machine.message);
}

unsigned char* dynamic_shared_memory() { return machine.dynamic_shared.begin(); }

unsigned lane() { return (machine.current - machine.threads.data()) % 32; }

int barrier(int value, Place place) {
  Thread& self = *machine.current;
  self.place = place;
  self.barrier_value = value;
  self.state = State::kAtBarrier;
  int sum = 0;
  for (const Thread& thread : machine.threads) {
    if (thread.state != State::kAtBarrier) {
      switch_to_scheduler();
      return self.barrier_result;
    }
    sum += thread.barrier_value != 0;
  }
  for (Thread& thread : machine.threads) {
    if (thread.place.line != place.line || std::strcmp(thread.place.file, place.file) != 0) {
      abandon("threads of a block meet at different __syncthreads: " + describe(place) + " and " +
              describe(thread.place));
    }
    thread.state = State::kReady;
    thread.barrier_result = sum;
  }
  switch_thread();
  return sum;
}

void warp_collective(const char* name, unsigned mask, void* payload,
                     void (*resolve)(void** payloads), Place place) {
  Thread& self = *machine.current;
  self.place = place;
  self.collective = name;
  self.mask = mask;
  self.payload = payload;
  self.state = State::kAtCollective;
  Thread* warp = &self - lane();
  const auto lanes = std::min<std::size_t>(32, &machine.threads.back() + 1 - warp);
  if ((mask >> lane() & 1) == 0) fail(std::string(name) + ": the mask is without the own lane");
  if (lanes < 32 && mask >> lanes != 0) fail(std::string(name) + ": the mask is beyond the block");
  void* payloads[32] = {};
  for (unsigned i = 0; i < lanes; ++i) {
    if ((mask >> i & 1) == 0) continue;
    const Thread& other = warp[i];
    if (other.state != State::kAtCollective || other.mask != mask ||
        std::strcmp(other.collective, name) != 0) {
      switch_to_scheduler();
      return;
    }
    payloads[i] = other.payload;
  }
  resolve(payloads);
  for (unsigned i = 0; i < lanes; ++i) {
    if (mask >> i & 1) warp[i].state = State::kReady;
  }
  switch_thread();
}

void switch_thread() {
  if (machine.schedule >= kRandom && machine.random() % 2 == 0) switch_to_scheduler();
}

void fail(const std::string& message) { abandon(message + of_current_thread()); }

void copy_later(void* target, const void* source, std::size_t bytes, std::size_t zero_fill) {
  auto& copies = machine.current->copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({target, source, bytes, zero_fill});
}

void commit_copies() {
  auto& copies = machine.current->copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}

void wait_for_copies(std::size_t groups_left) {
  auto& copies = machine.current->copies;
  while (copies.size() > groups_left + 1) {
    for (const Copy& copy : copies.front()) {
      const std::size_t read = copy.bytes - copy.zero_fill;
      std::memcpy(copy.target, copy.source, read);
      std::memset(static_cast<char*>(copy.target) + read, 0, copy.zero_fill);
    }
    copies.pop_front();
  }
}

}  // namespace cuda_emulator

extern "C" void cuda_emulator_schedule(int schedule) {
  cuda_emulator::machine.schedule = schedule;
  cuda_emulator::machine.random.seed(schedule);
}
