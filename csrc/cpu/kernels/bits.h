// Bytes of 0 or 1 as bits.

#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastinst {
namespace FASTINST_ISA {

// Bit i is byte i, of 64.
inline uint64_t bits_of(const uint8_t* bytes) {
#if defined(__AVX512BW__)
  const __m512i all = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(all, all);
#elif defined(__AVX2__)
  // Shifted left by 7 the 1 is the sign, which movemask gathers.
  const __m256i low = _mm256_loadu_si256((const __m256i*)bytes);
  const __m256i high = _mm256_loadu_si256((const __m256i*)(bytes + 32));
  return uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(low, 7))) |
         uint64_t(uint32_t(_mm256_movemask_epi8(_mm256_slli_epi16(high, 7)))) << 32;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 64; i += 8) {
    uint64_t eight;
    __builtin_memcpy(&eight, bytes + i, 8);
    // The product moves the 1 of byte k to bit 56 + k; nothing carries into those.
    bits |= (eight * 0x0102040810204080u >> 56) << i;
  }
  return bits;
#endif
}

}  // namespace FASTINST_ISA
}  // namespace fastinst
