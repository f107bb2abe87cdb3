// Dot products of bfloat16 rows, which are decode attention's scores: y `[R, O]` in float32 is x `[R, I]` times the
// rows of a matrix `[O, I]` that is not packed.
//
// A register of a row and one of the matrix are multiplied lane by lane. Sixteen such sums are in registers at a time,
// and their lanes are added at the end.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vectors.h"

ROOST_TARGET_BEGIN
namespace {

// Loads and products of bfloat16; `count` elements are loaded at the end of a row.
struct Bf16 {
  using Element = uint16_t;
  using Lanes = Floats;
  using Sum = float;
  static constexpr int64_t kStep = 32;

  ROOST_INLINE static Ints Weights(const uint16_t* p) { return LoadBits(p); }
  ROOST_INLINE static Ints Weights(const uint16_t* p, int64_t count) { return Row(p, count); }
  ROOST_INLINE static Ints Row(const uint16_t* p) { return LoadBits(p); }
  ROOST_INLINE static Ints Row(const uint16_t* p, int64_t count) {
    return LoadPairs(p, count);
  }
  ROOST_INLINE static Floats Zero() { return Floats{}; }
};

// Products of bfloat16 by the instruction for pairs.
struct InPairs : Bf16 {
  template <typename Sum>
  ROOST_INLINE static Sum MultiplyAdd(Sum sum, Ints w, Ints x) {
    return AddProducts(sum, w, x);
  }
};

// Products of bfloat16 widened to float32, in which they are exact.
struct Widened : Bf16 {
  ROOST_INLINE static Floats MultiplyAdd(Floats sum, Ints w, Ints x) {
    return TimesPlus(WidenEven(x), WidenEven(w), TimesPlus(WidenOdd(x), WidenOdd(w), sum));
  }
};

// Calls `call` with `InPairs` or `Widened`, as this processor can.
template <typename Call>
void WithRowKernel(const Call& call) {
  if constexpr (kPairs) {
    if (HasPairs()) return call(InPairs{});
  }
  call(Widened{});
}

// Computes sixteen dot products: lane r * Outputs + o of the result is row r of x times row o of the matrix. With
// `Fetch`, the memory `ahead` bytes after the matrix is prefetched.
template <typename K, int Outputs, int Rows, bool Fetch>
ROOST_INLINE typename K::Lanes Tile(const typename K::Element* const (&w)[Outputs],
                                    const typename K::Element* const (&x)[Rows], int64_t inputs, int64_t ahead) {
  static_assert(Outputs * Rows == 16);
  typename K::Lanes acc[16];
  ROOST_UNROLL
  for (auto& sum : acc) sum = K::Zero();
  constexpr int kSome = kManyRegisters ? Outputs : 4 / Rows;  // outputs whose sums are in registers
  const int64_t end = inputs / K::kStep * K::kStep;
  ROOST_UNROLL
  for (int first = 0; first < Outputs; first += kSome) {
    for (int64_t i = 0; i < end; i += K::kStep) {
      Ints row[Rows];
      ROOST_UNROLL
      for (int r = 0; r < Rows; ++r) row[r] = K::Row(x[r] + i);
      ROOST_UNROLL
      for (int o = first; o < first + kSome; ++o) {
        const Ints weights = K::Weights(w[o] + i);
        if constexpr (Fetch) Prefetch(w[o] + i, ahead);
        ROOST_UNROLL
        for (int r = 0; r < Rows; ++r) acc[r * Outputs + o] = K::MultiplyAdd(acc[r * Outputs + o], weights, row[r]);
      }
    }
  }
  if (const int64_t rest = inputs - end; rest > 0) {
    ROOST_UNROLL
    for (int o = 0; o < Outputs; ++o) {
      const Ints weights = K::Weights(w[o] + end, rest);
      ROOST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        acc[r * Outputs + o] = K::MultiplyAdd(acc[r * Outputs + o], weights, K::Row(x[r] + end, rest));
      }
    }
  }
  return SumLanes(acc);
}

// Joins four adjacent tiles, of four outputs and four rows each, into four rows of sixteen outputs.
ROOST_INLINE void JoinRows(const Floats (&tiles)[4], Floats (&rows)[4]) {
  const Floats a = EvenQuarters(tiles[0], tiles[1]), b = EvenQuarters(tiles[2], tiles[3]);
  const Floats c = OddQuarters(tiles[0], tiles[1]), d = OddQuarters(tiles[2], tiles[3]);
  rows[0] = EvenQuarters(a, b);
  rows[1] = EvenQuarters(c, d);
  rows[2] = OddQuarters(a, b);
  rows[3] = OddQuarters(c, d);
}

// Computes outputs [o, o + 16), or fewer at the end of the matrix, of rows [r, r + Rows): one register for each row.
template <typename K, int Rows, bool Fetch, typename Finish>
ROOST_INLINE void Strip(const typename K::Element* w, int64_t o, int64_t end, const typename K::Element* x, int64_t r,
                        int64_t last, int64_t inputs, int64_t ahead, const Finish& finish, Floats (&out)[Rows]) {
  constexpr int kOutputs = 16 / Rows;
  const typename K::Element* taken[Rows];
  for (int i = 0; i < Rows; ++i) taken[i] = x + std::min(r + i, last) * inputs;
  Floats tiles[Rows];
  ROOST_UNROLL
  for (int t = 0; t < Rows; ++t) {
    const int64_t from = o + t * kOutputs;
    const typename K::Element* weights[kOutputs];
    for (int i = 0; i < kOutputs; ++i) weights[i] = w + std::min(from + i, end - 1) * inputs;
    tiles[t] = finish.template Numbers<kOutputs>(
        Tile<K, kOutputs, Rows, Fetch>(weights, taken, inputs, ahead), std::min(from, end - 1),
        std::min<int64_t>(kOutputs, std::max<int64_t>(end - from, 1)), r);
  }
  if constexpr (Rows == 1) out[0] = tiles[0];
  if constexpr (Rows == 2) {
    out[0] = LowQuarters(tiles[0], tiles[1]);
    out[1] = HighQuarters(tiles[0], tiles[1]);
  }
  if constexpr (Rows == 4) JoinRows(tiles, out);
}

// Computes and stores outputs [o, o + 16) of rows [r, r + Rows).
template <typename K, int Rows, typename Finish>
ROOST_INLINE void StoreStrip(const typename K::Element* w, int64_t o, int64_t end, const typename K::Element* x,
                             int64_t r, int64_t rows, int64_t inputs, int64_t ahead, float* y, int64_t stride,
                             const Finish& finish) {
  const Mask mask = LanesIn(0, end - o);
  Floats out[Rows];
  if (r == 0) {
    Strip<K, Rows, true>(w, o, end, x, r, rows - 1, inputs, ahead, finish, out);
  } else {
    Strip<K, Rows, false>(w, o, end, x, r, rows - 1, inputs, ahead, finish, out);
  }
  for (int i = 0; i < Rows && r + i < rows; ++i) StoreSome(y + (r + i) * stride + o, mask, out[i]);
}

// Computes y for rows [0, end) of the matrix and all rows of x. While position p of the matrix is read, the memory
// `ahead(p)` bytes after p is prefetched.
template <typename K, typename Finish, typename Ahead>
void Product(const typename K::Element* w, int64_t end, const typename K::Element* x, int64_t rows, int64_t inputs,
             float* y, int64_t stride, const Finish& finish, const Ahead& ahead) {
  for (int64_t o = 0; o < end; o += 16) {
    const int64_t distance = ahead(w + o * inputs);
    for (int64_t r = 0; r < rows; r += 4) {
      if (rows - r == 1) {
        StoreStrip<K, 1>(w, o, end, x, r, rows, inputs, distance, y, stride, finish);
      } else if (rows - r == 2) {
        StoreStrip<K, 2>(w, o, end, x, r, rows, inputs, distance, y, stride, finish);
      } else {
        StoreStrip<K, 4>(w, o, end, x, r, rows, inputs, distance, y, stride, finish);
      }
    }
  }
}

}  // namespace
ROOST_TARGET_END
