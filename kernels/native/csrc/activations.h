// Functions of sixteen floats: exp, sigmoid, 1 - exp, gelu and tanh.
//
// Each function is a polynomial, whose operations and order are the same in all calls. Instruction sets: AVX-512 F, DQ.

#pragma once

#include <initializer_list>

#include "target.h"

ROOST_TARGET_BEGIN
namespace {

// Returns e^x for x <= 0, to two units in the last place, and NaN for NaN.
// Below -1024, where the result rounds to 0, the polynomial could overflow. The maximum returns NaN for NaN.
ROOST_INLINE __m512 Exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-1024.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  ROOST_UNROLL
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  }
  return _mm512_scalef_ps(p, n);
}

// Returns 1 / (1 + e^-x).
ROOST_INLINE __m512 Sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), tail = Exp(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_div_ps(_mm512_mask_mov_ps(one, is_negative, tail), _mm512_add_ps(one, tail));
}

// Returns 1 - e^x for x <= 0, accurate near 0, given e^x.
ROOST_INLINE __m512 OneMinusExp(__m512 x, __m512 exp) {
  __m512 p = _mm512_set1_ps(1.0f / 362880);
  ROOST_UNROLL
  for (const float c : {1.0f / 40320, 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) {
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(c));
  }
  const __m512 near = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), p);
  const __mmask16 is_far = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-0.5f), _CMP_LT_OQ);
  return _mm512_mask_sub_ps(near, is_far, _mm512_set1_ps(1.0f), exp);
}

// Returns gelu(x) in the approximation by tanh: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)).
ROOST_INLINE __m512 Gelu(__m512 x) {
  const __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cubed, x);
  return _mm512_mul_ps(x, Sigmoid(_mm512_mul_ps(_mm512_set1_ps(1.5957691216057308f), inner)));
}

// Returns tanh(x), accurate near 0, and NaN for NaN.
ROOST_INLINE __m512 Tanh(__m512 x) {
  const __m512 minus = _mm512_set1_ps(-0.0f), tail = _mm512_mul_ps(_mm512_set1_ps(-2.0f), _mm512_abs_ps(x));
  const __m512 exp = Exp(tail);
  const __m512 size = _mm512_div_ps(OneMinusExp(tail, exp), _mm512_add_ps(_mm512_set1_ps(1.0f), exp));
  return _mm512_or_ps(size, _mm512_and_ps(minus, x));
}

}  // namespace
ROOST_TARGET_END
