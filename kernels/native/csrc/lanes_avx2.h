// Sixteen lanes of 32 bits as two registers of AVX2, for processors without AVX-512: the operations of lanes_avx512.h,
// which says what they do.
//
// Instruction sets: AVX2, FMA and F16C.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "target.h"

ROOST_TARGET_BEGIN
namespace {

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
using Mask = Ints;  // all bits of a lane, or none

constexpr bool kManyRegisters = false;  // sixteen, of eight lanes each
constexpr bool kPairs = false;

ROOST_INLINE Floats Splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ROOST_INLINE Ints SplatInt(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ROOST_INLINE Ints SplatByte(int8_t x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
ROOST_INLINE Ints LaneNumbers() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}

// Defines an operation on two arguments by the intrinsic that computes half of the lanes.
#define ROOST_BOTH(Lanes, name, intrinsic) \
  ROOST_INLINE Lanes name(Lanes a, Lanes b) { return {intrinsic(a.low, b.low), intrinsic(a.high, b.high)}; }

ROOST_BOTH(Ints, Plus, _mm256_add_epi32)
ROOST_BOTH(Ints, Minus, _mm256_sub_epi32)
ROOST_BOTH(Ints, Max, _mm256_max_epi32)
ROOST_BOTH(Ints, And, _mm256_and_si256)
ROOST_BOTH(Ints, Or, _mm256_or_si256)
ROOST_BOTH(Ints, Xor, _mm256_xor_si256)
ROOST_BOTH(Ints, IsGreater, _mm256_cmpgt_epi32)
ROOST_BOTH(Ints, IsEqual, _mm256_cmpeq_epi32)
ROOST_BOTH(Ints, MixLow, _mm256_unpacklo_epi32)
ROOST_BOTH(Ints, MixHigh, _mm256_unpackhi_epi32)
ROOST_BOTH(Ints, JoinLow, _mm256_unpacklo_epi64)
ROOST_BOTH(Ints, JoinHigh, _mm256_unpackhi_epi64)
template <int N>
ROOST_INLINE Ints ShiftLeft(Ints x) { return {_mm256_slli_epi32(x.low, N), _mm256_slli_epi32(x.high, N)}; }
template <int N>
ROOST_INLINE Ints ShiftRight(Ints x) { return {_mm256_srli_epi32(x.low, N), _mm256_srli_epi32(x.high, N)}; }
template <int N>
ROOST_INLINE Ints ShiftRightSigned(Ints x) { return {_mm256_srai_epi32(x.low, N), _mm256_srai_epi32(x.high, N)}; }
template <int N>
ROOST_INLINE Ints ShiftRightWords(Ints x) { return {_mm256_srli_epi16(x.low, N), _mm256_srli_epi16(x.high, N)}; }

ROOST_INLINE Mask LanesIn(int64_t begin, int64_t end) {
  const auto bound = [](int64_t x) { return SplatInt(static_cast<int32_t>(std::clamp<int64_t>(x, 0, 16))); };
  const Ints lanes = LaneNumbers(), low = IsGreater(bound(begin), lanes), high = IsGreater(bound(end), lanes);
  return {_mm256_andnot_si256(low.low, high.low), _mm256_andnot_si256(low.high, high.high)};
}

ROOST_BOTH(Floats, Plus, _mm256_add_ps)
ROOST_BOTH(Floats, Minus, _mm256_sub_ps)
ROOST_BOTH(Floats, Times, _mm256_mul_ps)
ROOST_BOTH(Floats, Over, _mm256_div_ps)
ROOST_BOTH(Floats, Max, _mm256_max_ps)
ROOST_BOTH(Floats, And, _mm256_and_ps)
ROOST_BOTH(Floats, Or, _mm256_or_ps)
#undef ROOST_BOTH

ROOST_INLINE Floats TimesPlus(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
ROOST_INLINE Floats MinusTimes(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
ROOST_INLINE Floats Sqrt(Floats x) { return {_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)}; }
ROOST_INLINE Floats Round(Floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, kNearest), _mm256_round_ps(x.high, kNearest)};
}
ROOST_INLINE Floats Apart(Floats product) {
  asm("" : "+x"(product.low), "+x"(product.high));
  return product;
}

ROOST_INLINE Ints Bits(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
ROOST_INLINE Floats Floating(Ints bits) { return {_mm256_castsi256_ps(bits.low), _mm256_castsi256_ps(bits.high)}; }
ROOST_INLINE Floats ToFloats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
ROOST_INLINE Ints ToInts(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
ROOST_INLINE Floats Abs(Floats x) { return And(x, Floating(SplatInt(0x7fffffff))); }

// Both factors are powers of two that float32 has, so that only the last product is rounded.
ROOST_INLINE Floats TimesPowerOfTwo(Floats x, Floats n) {
  const Ints all = ToInts(Max(Splat(-252.0f), n)), half = ShiftRightSigned<1>(all);
  const auto power = [](Ints e) { return Floating(ShiftLeft<23>(Plus(e, SplatInt(127)))); };
  return Times(Times(x, power(half)), power(Minus(all, half)));
}

ROOST_INLINE Mask IsLess(Floats a, Floats b) {
  return Bits({_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)});
}
ROOST_INLINE Mask IsNaN(Floats x) {
  return Bits({_mm256_cmp_ps(x.low, x.low, _CMP_UNORD_Q), _mm256_cmp_ps(x.high, x.high, _CMP_UNORD_Q)});
}
ROOST_INLINE bool AreLess(Floats a, Floats b) {
  const Mask are = IsLess(a, b);
  return _mm256_movemask_epi8(_mm256_and_si256(are.low, are.high)) == -1;
}

ROOST_INLINE Ints Select(Mask mask, Ints yes, Ints no) {
  return {_mm256_blendv_epi8(no.low, yes.low, mask.low), _mm256_blendv_epi8(no.high, yes.high, mask.high)};
}
ROOST_INLINE Floats Select(Mask mask, Floats yes, Floats no) { return Floating(Select(mask, Bits(yes), Bits(no))); }

ROOST_INLINE Floats Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ROOST_INLINE Floats LoadSome(Mask mask, const float* p) {
  return {_mm256_maskload_ps(p, mask.low), _mm256_maskload_ps(p + 8, mask.high)};
}
ROOST_INLINE Ints LoadBits(const void* p) {
  const auto* const at = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
ROOST_INLINE Ints LoadPairs(const uint16_t* p, int64_t count) {
  uint16_t words[32] = {};
  std::memcpy(words, p, count * sizeof *p);
  return LoadBits(words);
}
ROOST_INLINE Ints LoadWords(const uint16_t* p) {
  const auto* const at = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
}
ROOST_INLINE Floats LoadHalf(const uint16_t* p) {
  const auto* const at = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}

ROOST_INLINE void Store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
ROOST_INLINE void StoreSome(float* p, Mask mask, Floats x) {
  _mm256_maskstore_ps(p, mask.low, x.low);
  _mm256_maskstore_ps(p + 8, mask.high, x.high);
}
ROOST_INLINE void StoreBits(void* p, Ints x) {
  auto* const at = static_cast<__m256i*>(p);
  _mm256_storeu_si256(at, x.low);
  _mm256_storeu_si256(at + 1, x.high);
}

// Packing instructions work in halves of a register, whose quarters are put in order afterwards.
ROOST_INLINE void StoreWords(uint16_t* p, Ints x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
}
ROOST_INLINE void StoreBytes(int8_t* p, Ints x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// Returns `add` of all lanes: of the halves first, then of halves of these.
template <typename Number, typename Lanes, typename Add>
ROOST_INLINE Number Reduce(Lanes x, const Add& add) {
  alignas(64) Number lanes[16];
  std::memcpy(lanes, &x, sizeof lanes);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = add(lanes[i], lanes[i + half]);
  }
  return lanes[0];
}
ROOST_INLINE float First(Floats x) { return _mm256_cvtss_f32(x.low); }
ROOST_INLINE float TotalOf(Floats x) {
  return Reduce<float>(x, [](float a, float b) { return a + b; });
}
ROOST_INLINE float LargestOf(Floats x) {
  return Reduce<float>(x, [](float a, float b) { return a > b ? a : b; });
}
ROOST_INLINE int32_t TotalOf(Ints x) {
  return Reduce<int32_t>(x, [](int32_t a, int32_t b) { return a + b; });
}
ROOST_INLINE int32_t LargestOf(Ints x) {
  return Reduce<int32_t>(x, [](int32_t a, int32_t b) { return std::max(a, b); });
}
ROOST_INLINE int32_t SmallestOf(Mask mask, Ints x) {
  const Ints some = Select(mask, x, SplatInt(0x7fffffff));
  return Reduce<int32_t>(some, [](int32_t a, int32_t b) { return std::min(a, b); });
}

// Registers have two quarters each, numbered from the lower one of the first.
ROOST_INLINE Ints EvenQuarters(Ints a, Ints b) {
  return {_mm256_permute2x128_si256(a.low, a.high, 0x20), _mm256_permute2x128_si256(b.low, b.high, 0x20)};
}
ROOST_INLINE Ints OddQuarters(Ints a, Ints b) {
  return {_mm256_permute2x128_si256(a.low, a.high, 0x31), _mm256_permute2x128_si256(b.low, b.high, 0x31)};
}
ROOST_INLINE Floats EvenQuarters(Floats a, Floats b) { return Floating(EvenQuarters(Bits(a), Bits(b))); }
ROOST_INLINE Floats OddQuarters(Floats a, Floats b) { return Floating(OddQuarters(Bits(a), Bits(b))); }
ROOST_INLINE Floats LowQuarters(Floats a, Floats b) { return {a.low, b.low}; }
ROOST_INLINE Floats HighQuarters(Floats a, Floats b) { return {a.high, b.high}; }

// The instruction for products of bytes adds those of two in 16 bits, which hold the products of int8 from -127 to 127.
// Its first operand is unsigned, so x takes the sign of the weight.
constexpr int32_t kExcess = 0;
ROOST_INLINE __m256i AddProducts(__m256i sum, __m256i w, __m256i x) {
  const __m256i weights = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
  const __m256i words = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}
ROOST_INLINE Ints AddProducts(Ints sum, Ints w, Ints x) {
  return {AddProducts(sum.low, w.low, x.low), AddProducts(sum.high, w.high, x.high)};
}

// Four products of a byte below 16 and one of int8 fit into 16 bits.
ROOST_INLINE __m256i AddNibbles(__m256i sum, __m256i w, __m256i x, __m256i w2, __m256i x2) {
  const __m256i words = _mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(w2, x2));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}
ROOST_INLINE Ints AddNibbles(Ints sum, Ints w, Ints x, Ints w2, Ints x2) {
  return {AddNibbles(sum.low, w.low, x.low, w2.low, x2.low), AddNibbles(sum.high, w.high, x.high, w2.high, x2.high)};
}

}  // namespace
ROOST_TARGET_END
