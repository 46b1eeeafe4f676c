// Atomic operations. Only one thread runs at a time, so plain arithmetic is atomic; a switch
// beforehand varies the order in which threads arrive.
#pragma once

namespace cuda_emulator {

template <typename T, typename Operation>
T exchange(T* address, Operation operation) {
  switch_thread();
  const T before = *address;
  *address = operation(before);
  return before;
}

}  // namespace cuda_emulator

template <typename T>
T atomicAdd(T* address, T value) {
  return cuda_emulator::exchange(address, [=](T before) { return static_cast<T>(before + value); });
}
template <typename T>
T atomicSub(T* address, T value) {
  return cuda_emulator::exchange(address, [=](T before) { return before - value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return cuda_emulator::exchange(address,
                                 [=](T before) { return before > value ? before : value; });
}
template <typename T>
T atomicMin(T* address, T value) {
  return cuda_emulator::exchange(address,
                                 [=](T before) { return before < value ? before : value; });
}
template <typename T>
T atomicOr(T* address, T value) {
  return cuda_emulator::exchange(address, [=](T before) { return before | value; });
}
template <typename T>
T atomicAnd(T* address, T value) {
  return cuda_emulator::exchange(address, [=](T before) { return before & value; });
}
template <typename T>
T atomicExch(T* address, T value) {
  return cuda_emulator::exchange(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  return cuda_emulator::exchange(
      address, [=](T before) { return before == expected ? value : before; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return cuda_emulator::exchange(
      address, [=](unsigned before) { return before >= limit ? 0u : before + 1u; });
}
