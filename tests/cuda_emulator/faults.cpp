#include "faults.h"

#include <cstdint>
#include <cstdio>

#include <dlfcn.h>
#include <ucontext.h>

namespace cuda_emulator {
namespace {

void (*report_fault)(const std::string& message) = nullptr;
char handler_stack[1 << 16];  // the fiber's own may be what has overflowed

// The faulting instruction, as library+offset for addr2line.
std::string instruction(void* context) {
  const mcontext_t& machine_context = static_cast<ucontext_t*>(context)->uc_mcontext;
#ifdef __x86_64__
  const auto address = static_cast<std::uintptr_t>(machine_context.gregs[REG_RIP]);
#else
  const auto address = static_cast<std::uintptr_t>(machine_context.pc);
#endif
  Dl_info library{};
  dladdr(reinterpret_cast<void*>(address), &library);
  char text[32];
  std::snprintf(text, sizeof text, "+0x%zx",
                address - reinterpret_cast<std::uintptr_t>(library.dli_fbase));
  return (library.dli_fname != nullptr ? library.dli_fname : "?") + std::string(text);
}

void on_fault(int signal, siginfo_t* info, void* context) {
  char address[32];
  std::snprintf(address, sizeof address, "address %p", info->si_addr);
  const bool is_access = signal == SIGSEGV || signal == SIGBUS;
  report_fault((is_access ? "access out of bounds: " + std::string(address)
                          : std::string("undefined behaviour (misaligned address, index out of an "
                                        "array, overflow)")) +
               ", at " + instruction(context));
}

}  // namespace

FaultHandlers::FaultHandlers(void (*report)(const std::string& message)) {
  report_fault = report;
  stack_t alternate{};
  alternate.ss_sp = handler_stack;
  alternate.ss_size = sizeof handler_stack;
  sigaltstack(&alternate, &previous_stack_);
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &previous_[i]);
}

FaultHandlers::~FaultHandlers() {
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &previous_[i], nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

}  // namespace cuda_emulator
