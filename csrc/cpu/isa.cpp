#include "isa.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fastinst {
namespace {

Isa best_isa() {
#if FASTINST_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* name = std::getenv("FASTINST_ISA");
  if (name == nullptr) return best;
  Isa wanted = best;
  if (std::strcmp(name, "baseline") == 0) {
    wanted = Isa::kBaseline;
  } else if (std::strcmp(name, "avx2") == 0) {
    wanted = Isa::kAvx2;
  } else if (std::strcmp(name, "avx512") == 0) {
    wanted = Isa::kAvx512;
  } else {
    std::fprintf(stderr, "fastinst: FASTINST_ISA=%s is none of baseline, avx2, avx512\n", name);
  }
  return wanted < best ? wanted : best;
}

}  // namespace

Isa isa() {
  static const Isa chosen = chosen_isa();
  return chosen;
}

}  // namespace fastinst

extern "C" __attribute__((visibility("default"))) const char* fastinst_isa() {
  switch (fastinst::isa()) {
    case fastinst::Isa::kAvx512: return "avx512";
    case fastinst::Isa::kAvx2: return "avx2";
    default: return "baseline";
  }
}
