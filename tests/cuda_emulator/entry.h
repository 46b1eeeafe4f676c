// Makes a launcher callable from tests/emulated.py:
//
//   #include "kernels/scale.cuh"
//   void scale(const float* input, float* output, int count, float factor) {
//     fastinst::launch_scale(input, output, count, factor, nullptr);
//   }
//   EMULATED(scale, scale)
//
// The second argument may be a template's instance. Parameters are pointers and numbers; tensors,
// None, ints, bools and floats come from Python.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>

namespace cuda_emulator {

union Argument {
  std::int64_t integer;
  double real;
  void* pointer;
};

template <typename T>
T argument_as(const Argument& argument) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(argument.pointer);
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(argument.real);
  } else {
    return static_cast<T>(argument.integer);
  }
}

template <typename... Parameters, std::size_t... kIndices>
void call(void (*function)(Parameters...), const Argument* arguments,
          std::index_sequence<kIndices...>) {
  function(argument_as<Parameters>(arguments[kIndices])...);
}

// Null, or what went wrong. `kinds` has 'p', 'i' or 'f' for each argument.
template <typename... Parameters>
const char* call_from_python(void (*function)(Parameters...), const Argument* arguments,
                             const char* kinds) {
  constexpr char kKinds[] = {(std::is_pointer_v<Parameters>          ? 'p'
                              : std::is_floating_point_v<Parameters> ? 'f'
                                                                     : 'i')...,
                             '\0'};
  static std::string message;
  if (std::string(kinds) != kKinds) {
    message = std::string("takes arguments ") + kKinds + ", got " + kinds;
    return message.c_str();
  }
  try {
    call(function, arguments, std::index_sequence_for<Parameters...>{});
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace cuda_emulator

#define EMULATED(name, ...)                                                                  \
  extern "C" const char* emulated_##name(const cuda_emulator::Argument* arguments,           \
                                         const char* kinds) {                                \
    return cuda_emulator::call_from_python(__VA_ARGS__, arguments, kinds);                   \
  }
