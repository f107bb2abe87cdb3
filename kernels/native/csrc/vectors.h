// Loads and stores of sixteen lanes that convert between bfloat16 and float32, and sums over lanes.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef ROOST_AVX2
#include "lanes_avx2.h"
#else
#include "lanes_avx512.h"
#endif

ROOST_TARGET_BEGIN
namespace {

// The even or odd ones of 32 bfloat16, as float32.
ROOST_INLINE Floats WidenEven(Ints pairs) { return Floating(ShiftLeft<16>(pairs)); }
ROOST_INLINE Floats WidenOdd(Ints pairs) { return Floating(And(pairs, SplatInt(0xffff0000))); }

// Prefetches the cache line `ahead` bytes after p.
ROOST_INLINE void Prefetch(const void* p, int64_t ahead) {
  _mm_prefetch(static_cast<const char*>(p) + ahead, _MM_HINT_T0);
}

// Stores sixteen numbers, rounded to the nearest bfloat16, of two equally near ones to the even one.
ROOST_INLINE void Store(uint16_t* p, Floats x) {
  const Ints bits = Bits(x), high = ShiftRight<16>(bits);
  const Ints half = Plus(And(high, SplatInt(1)), SplatInt(0x7fff));
  const Ints rounded = ShiftRight<16>(Plus(bits, half));
  const Ints quiet = Or(high, SplatInt(0x40));  // a NaN, which rounding might make infinite
  StoreWords(p, Select(IsNaN(x), quiet, rounded));
}

// Loads sixteen numbers in float32 or bfloat16 as float32.
ROOST_INLINE Floats Widen(const uint16_t* p) { return Floating(ShiftLeft<16>(LoadWords(p))); }
ROOST_INLINE Floats Widen(const float* p) { return Load(p); }
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

// Bits as integers and back, for lanes of float32 and of int32.
ROOST_INLINE Ints Bits(Ints a) { return a; }
ROOST_INLINE void Set(Floats& a, Ints bits) { a = Floating(bits); }
ROOST_INLINE void Set(Ints& a, Ints bits) { a = bits; }

// Adds lanes that are given as bits.
template <typename Lanes>
ROOST_INLINE Lanes Add2(Ints low, Ints high) {
  Lanes a, b;
  Set(a, low);
  Set(b, high);
  return Plus(a, b);
}

// Lane i of the result is the sum of the lanes of acc[i]. The lanes of all registers are added in the same order.
template <typename Lanes>
ROOST_INLINE Lanes SumLanes(const Lanes (&acc)[16]) {
  Lanes pairs[8], quads[4];
  ROOST_UNROLL
  for (int i = 0; i < 8; ++i) {
    const Ints a = Bits(acc[2 * i]), b = Bits(acc[2 * i + 1]);
    pairs[i] = Add2<Lanes>(MixLow(a, b), MixHigh(a, b));
  }
  ROOST_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Ints a = Bits(pairs[2 * i]), b = Bits(pairs[2 * i + 1]);
    quads[i] = Add2<Lanes>(JoinLow(a, b), JoinHigh(a, b));
  }
  Lanes halves[2];
  ROOST_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Ints a = Bits(quads[2 * i]), b = Bits(quads[2 * i + 1]);
    halves[i] = Add2<Lanes>(EvenQuarters(a, b), OddQuarters(a, b));
  }
  const Ints a = Bits(halves[0]), b = Bits(halves[1]);
  return Add2<Lanes>(EvenQuarters(a, b), OddQuarters(a, b));
}

}  // namespace
ROOST_TARGET_END
