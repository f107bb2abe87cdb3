// Sixteen lanes of 32 bits as a register of AVX-512: the operations that all kernels are written in.
//
// lanes_avx2.h has the same operations. Instruction sets: AVX-512 F, BW, DQ, VL and VNNI, and BF16 for one operation.

#pragma once

#include <algorithm>
#include <cstdint>

#include "target.h"

ROOST_TARGET_BEGIN
namespace {

using Floats = __m512;
using Ints = __m512i;
using Mask = __mmask16;

constexpr bool kManyRegisters = true;  // 32, of sixteen lanes each
constexpr bool kPairs = true;          // there are sums of products of pairs of bfloat16

ROOST_INLINE Floats Splat(float x) { return _mm512_set1_ps(x); }
ROOST_INLINE Ints SplatInt(int32_t x) { return _mm512_set1_epi32(x); }
ROOST_INLINE Ints SplatByte(int8_t x) { return _mm512_set1_epi8(x); }
ROOST_INLINE Ints LaneNumbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// Returns the mask of lanes [begin, end).
ROOST_INLINE Mask LanesIn(int64_t begin, int64_t end) {
  const int64_t low = std::clamp<int64_t>(begin, 0, 16), high = std::clamp<int64_t>(end, 0, 16);
  return ((1u << high) - 1) & ~((1u << low) - 1);
}

ROOST_INLINE Floats Load(const float* p) { return _mm512_loadu_ps(p); }
ROOST_INLINE Floats LoadSome(Mask mask, const float* p) { return _mm512_maskz_loadu_ps(mask, p); }
ROOST_INLINE Ints LoadBits(const void* p) { return _mm512_loadu_si512(p); }

// Loads `count` words of 16 bits, at most 32, two in a lane.
ROOST_INLINE Ints LoadPairs(const uint16_t* p, int64_t count) {
  return _mm512_maskz_loadu_epi16((uint32_t{1} << count) - 1, p);
}

// Loads sixteen words of 16 bits, one in a lane.
ROOST_INLINE Ints LoadWords(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
}

// Loads sixteen numbers in float16.
ROOST_INLINE Floats LoadHalf(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }

ROOST_INLINE void Store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
ROOST_INLINE void StoreSome(float* p, Mask mask, Floats x) { _mm512_mask_storeu_ps(p, mask, x); }
ROOST_INLINE void StoreBits(void* p, Ints x) { _mm512_storeu_si512(p, x); }

// Stores lanes below 2^16 as words of 16 bits.
ROOST_INLINE void StoreWords(uint16_t* p, Ints x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x)); }

// Stores lanes from -128 to 127 as bytes.
ROOST_INLINE void StoreBytes(int8_t* p, Ints x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }

ROOST_INLINE Floats Plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
ROOST_INLINE Floats Minus(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
ROOST_INLINE Floats Times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
ROOST_INLINE Floats Over(Floats a, Floats b) { return _mm512_div_ps(a, b); }
ROOST_INLINE Floats TimesPlus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
ROOST_INLINE Floats MinusTimes(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
ROOST_INLINE Floats Max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b if either is NaN
ROOST_INLINE Floats Abs(Floats x) { return _mm512_abs_ps(x); }
ROOST_INLINE Floats Sqrt(Floats x) { return _mm512_sqrt_ps(x); }
ROOST_INLINE Floats And(Floats a, Floats b) { return _mm512_and_ps(a, b); }
ROOST_INLINE Floats Or(Floats a, Floats b) { return _mm512_or_ps(a, b); }

// Rounds to the nearest whole number, of two equally near ones to the even one.
ROOST_INLINE Floats Round(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }

// Returns x 2^n for a whole n of at most 0; x is between 0.5 and 2, or NaN.
ROOST_INLINE Floats TimesPowerOfTwo(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }

// Returns a product that the compiler does not fuse with an addition into one operation, which would round once.
ROOST_INLINE Floats Apart(Floats product) {
  asm("" : "+v"(product));
  return product;
}

ROOST_INLINE Ints Plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
ROOST_INLINE Ints Minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
ROOST_INLINE Ints Max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
ROOST_INLINE Ints And(Ints a, Ints b) { return _mm512_and_si512(a, b); }
ROOST_INLINE Ints Or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
ROOST_INLINE Ints Xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
template <int N>
ROOST_INLINE Ints ShiftLeft(Ints x) { return _mm512_slli_epi32(x, N); }
template <int N>
ROOST_INLINE Ints ShiftRight(Ints x) { return _mm512_srli_epi32(x, N); }
template <int N>
ROOST_INLINE Ints ShiftRightSigned(Ints x) { return _mm512_srai_epi32(x, N); }
template <int N>
ROOST_INLINE Ints ShiftRightWords(Ints x) { return _mm512_srli_epi16(x, N); }

// Conversions: the same bits, and rounded to the nearest numbers.
ROOST_INLINE Ints Bits(Floats x) { return _mm512_castps_si512(x); }
ROOST_INLINE Floats Floating(Ints bits) { return _mm512_castsi512_ps(bits); }
ROOST_INLINE Floats ToFloats(Ints x) { return _mm512_cvtepi32_ps(x); }
ROOST_INLINE Ints ToInts(Floats x) { return _mm512_cvtps_epi32(x); }

ROOST_INLINE Mask IsLess(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
ROOST_INLINE Mask IsNaN(Floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
ROOST_INLINE Mask IsGreater(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask(a, b); }
ROOST_INLINE Mask IsEqual(Ints a, Ints b) { return _mm512_cmpeq_epi32_mask(a, b); }
ROOST_INLINE bool AreLess(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ) == 0; }  // in all lanes

// Returns the lanes of `yes` where the mask is set, and those of `no` elsewhere.
ROOST_INLINE Floats Select(Mask mask, Floats yes, Floats no) { return _mm512_mask_mov_ps(no, mask, yes); }
ROOST_INLINE Ints Select(Mask mask, Ints yes, Ints no) { return _mm512_mask_mov_epi32(no, mask, yes); }

ROOST_INLINE float First(Floats x) { return _mm512_cvtss_f32(x); }
ROOST_INLINE float TotalOf(Floats x) { return _mm512_reduce_add_ps(x); }
ROOST_INLINE float LargestOf(Floats x) { return _mm512_reduce_max_ps(x); }
ROOST_INLINE int32_t TotalOf(Ints x) { return _mm512_reduce_add_epi32(x); }
ROOST_INLINE int32_t LargestOf(Ints x) { return _mm512_reduce_max_epi32(x); }
ROOST_INLINE int32_t SmallestOf(Mask mask, Ints x) { return _mm512_mask_reduce_min_epi32(mask, x); }

// In each quarter of the lanes: the lower or higher half of a's lanes, and between them those of b.
ROOST_INLINE Ints MixLow(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
ROOST_INLINE Ints MixHigh(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }

// In each quarter of the lanes: the lower or higher half of a's lanes, then those of b.
ROOST_INLINE Ints JoinLow(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
ROOST_INLINE Ints JoinHigh(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }

// Two quarters of a's lanes, then two of b's: those of even or odd numbers, or the lower or higher half.
ROOST_INLINE Floats EvenQuarters(Floats a, Floats b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
ROOST_INLINE Floats OddQuarters(Floats a, Floats b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }
ROOST_INLINE Floats LowQuarters(Floats a, Floats b) { return _mm512_shuffle_f32x4(a, b, 0x44); }
ROOST_INLINE Floats HighQuarters(Floats a, Floats b) { return _mm512_shuffle_f32x4(a, b, 0xee); }
ROOST_INLINE Ints EvenQuarters(Ints a, Ints b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
ROOST_INLINE Ints OddQuarters(Ints a, Ints b) { return _mm512_shuffle_i32x4(a, b, 0xdd); }

// Adds the products of each lane's four bytes to its sum, exactly. Those of x are int8 from -127 to 127, and those of w
// int8 plus 128, of which a sum counts `kExcess` too much for each x.
constexpr int32_t kExcess = 128;
ROOST_INLINE Ints AddProducts(Ints sum, Ints w, Ints x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}

// Adds those of two registers whose unsigned bytes are below 16.
ROOST_INLINE Ints AddNibbles(Ints sum, Ints w, Ints x, Ints w2, Ints x2) {
  return AddProducts(AddProducts(sum, w, x), w2, x2);
}

// Adds the products of each lane's two bfloat16 to its sum, on processors with AVX-512 BF16. Inline assembly, because
// GCC's intrinsics move every sum to another register and back.
ROOST_INLINE Floats AddProducts(Floats sum, Ints w, Ints x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}

}  // namespace
ROOST_TARGET_END
