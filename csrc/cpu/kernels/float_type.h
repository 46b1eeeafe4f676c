// The element type of a kernel's tensors, chosen at run time.

#pragma once

namespace fastinst {

enum class FloatType { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace fastinst

#if defined(FASTINST_ISA)

#include "../vec.h"

namespace fastinst {
namespace FASTINST_ISA {

// Calls f with a number of the type: with_type(type, [&](auto number) { g<decltype(number)>(); })
template <typename F>
inline void with_type(FloatType type, const F& f) {
  switch (type) {
    case FloatType::kFloat: return f(float());
    case FloatType::kDouble: return f(double());
    case FloatType::kHalf: return f(Half());
    case FloatType::kBFloat16: return f(BFloat16());
  }
}

}  // namespace FASTINST_ISA
}  // namespace fastinst

#endif
