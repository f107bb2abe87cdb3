// Dot products of bfloat16 rows, which are decode attention's scores: y `[R, O]` in float32 is x `[R, I]` times the
// rows of a matrix `[O, I]` that is not packed.
//
// A register of a row and one of the matrix are multiplied lane by lane. Sixteen such sums are in registers at a time,
// and their lanes are added at the end. Instruction sets: AVX-512 F and BW, and BF16 for `InPairs`.

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
  using Lanes = __m512;
  using Sum = float;
  static constexpr int64_t kStep = 32;

  ROOST_INLINE static __m512i Weights(const uint16_t* p) { return _mm512_loadu_si512(p); }
  ROOST_INLINE static __m512i Weights(const uint16_t* p, int64_t count) { return Row(p, count); }
  ROOST_INLINE static __m512i Row(const uint16_t* p) { return _mm512_loadu_si512(p); }
  ROOST_INLINE static __m512i Row(const uint16_t* p, int64_t count) {
    return _mm512_maskz_loadu_epi16((uint32_t{1} << count) - 1, p);
  }
  ROOST_INLINE static __m512 Zero() { return _mm512_setzero_ps(); }
};

// Products of bfloat16 by the instruction for pairs.
struct InPairs : Bf16 {
  ROOST_INLINE static __m512 MultiplyAdd(__m512 sum, __m512i w, __m512i x) { return AddPairs(sum, w, x); }
};

// Products of bfloat16 widened to float32, in which they are exact.
struct Widened : Bf16 {
  ROOST_INLINE static __m512 MultiplyAdd(__m512 sum, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(WidenEven(x), WidenEven(w), _mm512_fmadd_ps(WidenOdd(x), WidenOdd(w), sum));
  }
};

// Computes sixteen dot products: lane r * Outputs + o of the result is row r of x times row o of the matrix. With
// `Fetch`, the memory `ahead` bytes after the matrix is prefetched.
template <typename K, int Outputs, int Rows, bool Fetch>
ROOST_INLINE typename K::Lanes Tile(const typename K::Element* const (&w)[Outputs],
                                    const typename K::Element* const (&x)[Rows], int64_t inputs, int64_t ahead) {
  static_assert(Outputs * Rows == 16);
  typename K::Lanes acc[16];
  ROOST_UNROLL
  for (auto& sum : acc) sum = K::Zero();
  int64_t i = 0;
  for (; i + K::kStep <= inputs; i += K::kStep) {
    __m512i row[Rows];
    ROOST_UNROLL
    for (int r = 0; r < Rows; ++r) row[r] = K::Row(x[r] + i);
    ROOST_UNROLL
    for (int o = 0; o < Outputs; ++o) {
      const __m512i weights = K::Weights(w[o] + i);
      if constexpr (Fetch) Prefetch(w[o] + i, ahead);
      ROOST_UNROLL
      for (int r = 0; r < Rows; ++r) acc[r * Outputs + o] = K::MultiplyAdd(acc[r * Outputs + o], weights, row[r]);
    }
  }
  if (const int64_t rest = inputs - i; rest > 0) {
    ROOST_UNROLL
    for (int o = 0; o < Outputs; ++o) {
      const __m512i weights = K::Weights(w[o] + i, rest);
      ROOST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        acc[r * Outputs + o] = K::MultiplyAdd(acc[r * Outputs + o], weights, K::Row(x[r] + i, rest));
      }
    }
  }
  return SumLanes(acc);
}

// Joins four adjacent tiles, of four outputs and four rows each, into four rows of sixteen outputs.
ROOST_INLINE void JoinRows(const __m512 (&tiles)[4], __m512 (&rows)[4]) {
  const __m512 a = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0x88), b = _mm512_shuffle_f32x4(tiles[2], tiles[3], 0x88);
  const __m512 c = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0xdd), d = _mm512_shuffle_f32x4(tiles[2], tiles[3], 0xdd);
  rows[0] = _mm512_shuffle_f32x4(a, b, 0x88);
  rows[1] = _mm512_shuffle_f32x4(c, d, 0x88);
  rows[2] = _mm512_shuffle_f32x4(a, b, 0xdd);
  rows[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

// Computes outputs [o, o + 16), or fewer at the end of the matrix, of rows [r, r + Rows): one register for each row.
template <typename K, int Rows, bool Fetch, typename Finish>
ROOST_INLINE void Strip(const typename K::Element* w, int64_t o, int64_t end, const typename K::Element* x, int64_t r,
                        int64_t last, int64_t inputs, int64_t ahead, const Finish& finish, __m512 (&out)[Rows]) {
  constexpr int kOutputs = 16 / Rows;
  const typename K::Element* taken[Rows];
  for (int i = 0; i < Rows; ++i) taken[i] = x + std::min(r + i, last) * inputs;
  __m512 tiles[Rows];
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
    out[0] = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0x44);
    out[1] = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0xee);
  }
  if constexpr (Rows == 4) JoinRows(tiles, out);
}

// Computes and stores outputs [o, o + 16) of rows [r, r + Rows).
template <typename K, int Rows, typename Finish>
ROOST_INLINE void StoreStrip(const typename K::Element* w, int64_t o, int64_t end, const typename K::Element* x,
                             int64_t r, int64_t rows, int64_t inputs, int64_t ahead, float* y, int64_t stride,
                             const Finish& finish) {
  const __mmask16 mask = (1u << std::min<int64_t>(16, end - o)) - 1;
  __m512 out[Rows];
  if (r == 0) {
    Strip<K, Rows, true>(w, o, end, x, r, rows - 1, inputs, ahead, finish, out);
  } else {
    Strip<K, Rows, false>(w, o, end, x, r, rows - 1, inputs, ahead, finish, out);
  }
  for (int i = 0; i < Rows && r + i < rows; ++i) _mm512_mask_storeu_ps(y + (r + i) * stride + o, mask, out[i]);
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
