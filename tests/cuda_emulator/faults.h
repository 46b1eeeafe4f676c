// Turns faults of device code, such as reading out of bounds, into messages.
#pragma once

#include <string>

#include <signal.h>

namespace cuda_emulator {

// For the time of a launch; `report` must not return.
class FaultHandlers {
 public:
  explicit FaultHandlers(void (*report)(const std::string& message));
  ~FaultHandlers();
  FaultHandlers(const FaultHandlers&) = delete;
  FaultHandlers& operator=(const FaultHandlers&) = delete;

 private:
  static constexpr int kSignals[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
  struct sigaction previous_[4];
  stack_t previous_stack_;
};

}  // namespace cuda_emulator
