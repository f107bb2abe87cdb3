// Functions of sixteen floats: exp, sigmoid, 1 - exp, gelu and tanh.
//
// Each function is a polynomial, whose operations and order are the same in all calls.

#pragma once

#include <initializer_list>

#include "target.h"

ROOST_TARGET_BEGIN
namespace {

// Returns e^x for x <= 0, to two units in the last place, and NaN for NaN.
// Below -1024, where the result rounds to 0, the polynomial could overflow. The maximum returns NaN for NaN.
ROOST_INLINE Floats Exp(Floats x) {
  x = Max(Splat(-1024.0f), x);
  const Floats n = Round(Times(x, Splat(1.44269504f)));
  Floats r = MinusTimes(n, Splat(0.693359375f), x);
  r = MinusTimes(n, Splat(-2.12194440e-4f), r);
  Floats p = Splat(1.0f / 5040);
  ROOST_UNROLL
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = TimesPlus(p, r, Splat(c));
  }
  return TimesPowerOfTwo(p, n);
}

// Returns 1 / (1 + e^-x).
ROOST_INLINE Floats Sigmoid(Floats x) {
  const Floats one = Splat(1.0f), tail = Exp(Minus(Floats{}, Abs(x)));
  const Mask is_negative = IsLess(x, Floats{});
  return Over(Select(is_negative, tail, one), Plus(one, tail));
}

// Returns 1 - e^x for x <= 0, accurate near 0, given e^x, which may be a product.
ROOST_INLINE Floats OneMinusExp(Floats x, Floats exp) {
  Floats p = Splat(1.0f / 362880);
  ROOST_UNROLL
  for (const float c : {1.0f / 40320, 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) {
    p = TimesPlus(p, x, Splat(c));
  }
  const Floats near = Times(Minus(Floats{}, x), p);
  const Mask is_far = IsLess(x, Splat(-0.5f));
  return Select(is_far, Minus(Splat(1.0f), Apart(exp)), near);
}

// Returns gelu(x) in the approximation by tanh: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)).
ROOST_INLINE Floats Gelu(Floats x) {
  const Floats cubed = Times(Times(x, x), x);
  const Floats inner = TimesPlus(Splat(0.044715f), cubed, x);
  return Times(x, Sigmoid(Times(Splat(1.5957691216057308f), inner)));
}

// Returns tanh(x), accurate near 0, and NaN for NaN.
ROOST_INLINE Floats Tanh(Floats x) {
  const Floats minus = Splat(-0.0f), tail = Times(Splat(-2.0f), Abs(x));
  const Floats exp = Exp(tail);
  const Floats size = Over(OneMinusExp(tail, exp), Plus(Splat(1.0f), exp));
  return Or(size, And(minus, x));
}

}  // namespace
ROOST_TARGET_END
