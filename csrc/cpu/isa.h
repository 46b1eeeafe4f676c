// Which instruction set the CPU kernels run with.
//
// Every file in cpu/kernels is compiled once for each of the namespaces below, and the host side
// picks one when it is first called, so that one library is fast on new processors and runs on
// old ones. Those files include no C++ library header: an inline function of one, compiled with
// AVX-512, could otherwise be the copy that the linker keeps for everybody.

#pragma once

#if defined(__x86_64__)
#define FASTINST_X86 1
#else
#define FASTINST_X86 0
#endif

// For what stands outside of those namespaces and is called from within.
#define FASTINST_INLINE inline __attribute__((always_inline))

// Declares `signature` in the namespace of each instruction set:
//   FASTINST_DECLARE(void rows(const Params& params, long begin, long end))
#if FASTINST_X86
#define FASTINST_DECLARE(...)           \
  namespace baseline { __VA_ARGS__; }   \
  namespace avx2 { __VA_ARGS__; }       \
  namespace avx512 { __VA_ARGS__; }
#else
#define FASTINST_DECLARE(...) \
  namespace baseline { __VA_ARGS__; }
#endif

// Calls a function so declared: FASTINST_CALL(rows<float>, params, begin, end)
#if FASTINST_X86
#define FASTINST_CALL(function, ...)                                                      \
  (::fastinst::isa() == ::fastinst::Isa::kAvx512   ? avx512::function(__VA_ARGS__)        \
   : ::fastinst::isa() == ::fastinst::Isa::kAvx2 ? avx2::function(__VA_ARGS__)            \
                                                 : baseline::function(__VA_ARGS__))
#else
#define FASTINST_CALL(function, ...) baseline::function(__VA_ARGS__)
#endif

namespace fastinst {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best that the processor has, or a lesser one by name in the environment's FASTINST_ISA.
Isa isa();

}  // namespace fastinst
