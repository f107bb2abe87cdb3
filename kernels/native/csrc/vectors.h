// Vectors of sixteen 32-bit lanes: loads and stores that convert between bfloat16 and float32, sums of products of
// bfloat16, and sums over lanes.
//
// Instruction sets: AVX-512 F and VL, and BF16 for `AddPairs`.

#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

ROOST_TARGET_BEGIN
namespace {

// Adds the products of 32 bfloat16, in pairs, to sixteen sums. Inline assembly, because GCC's intrinsics move every sum
// to another register and back.
ROOST_INLINE __m512 AddPairs(__m512 sum, __m512i w, __m512i x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}

// The even or odd ones of 32 bfloat16, as float32.
ROOST_INLINE __m512 WidenEven(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
ROOST_INLINE __m512 WidenOdd(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)));
}

// Prefetches the cache line `ahead` bytes after p.
ROOST_INLINE void Prefetch(const void* p, int64_t ahead) {
  _mm_prefetch(static_cast<const char*>(p) + ahead, _MM_HINT_T0);
}

// Stores sixteen numbers in float32, or rounded to the nearest bfloat16, of two equally near ones to the even one.
ROOST_INLINE void Store(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
ROOST_INLINE void Store(uint16_t* p, __m512 x) {
  const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
  const __m512i half = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));  // a NaN, which rounding might make infinite
  const __m512i of_all = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(of_all));
}

// Loads sixteen numbers in float32 or bfloat16 as float32.
ROOST_INLINE __m512 Widen(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
ROOST_INLINE __m512 Widen(const float* p) { return _mm512_loadu_ps(p); }
ROOST_INLINE float WidenOne(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
ROOST_INLINE float WidenOne(float x) { return x; }

// Bits of floats without their sign, as integers, have the order of absolute values, with NaNs last.
constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kSizeBits = 0x7fffffff;  // all but the sign

// Sums, bits and their conversion, for registers of float32 and of int32.
ROOST_INLINE __m512 Sum(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
ROOST_INLINE __m512i Sum(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
ROOST_INLINE __m512i Bits(__m512 a) { return _mm512_castps_si512(a); }
ROOST_INLINE __m512i Bits(__m512i a) { return a; }
ROOST_INLINE void Set(__m512& a, __m512i bits) { a = _mm512_castsi512_ps(bits); }
ROOST_INLINE void Set(__m512i& a, __m512i bits) { a = bits; }

// Adds two registers that are given as bits.
template <typename Lanes>
ROOST_INLINE Lanes Add2(__m512i low, __m512i high) {
  Lanes a, b;
  Set(a, low);
  Set(b, high);
  return Sum(a, b);
}

// Lane i of the result is the sum of the lanes of acc[i]. The lanes of all registers are added in the same order.
template <typename Lanes>
ROOST_INLINE Lanes SumLanes(const Lanes (&acc)[16]) {
  Lanes pairs[8], quads[4];
  ROOST_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m512i a = Bits(acc[2 * i]), b = Bits(acc[2 * i + 1]);
    pairs[i] = Add2<Lanes>(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
  ROOST_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512i a = Bits(pairs[2 * i]), b = Bits(pairs[2 * i + 1]);
    quads[i] = Add2<Lanes>(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  Lanes halves[2];
  ROOST_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512i a = Bits(quads[2 * i]), b = Bits(quads[2 * i + 1]);
    halves[i] = Add2<Lanes>(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  const __m512i a = Bits(halves[0]), b = Bits(halves[1]);
  return Add2<Lanes>(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

}  // namespace
ROOST_TARGET_END
