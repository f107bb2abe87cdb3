// Quantisation of activations to int8: a row `[I]` in float32 or bfloat16 becomes int8 values, a scale and an offset.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "vectors.h"

ROOST_TARGET_BEGIN
namespace {

// Returns the bits of a row's largest absolute value, or of a NaN if there is one, which maxima of floats would lose.
template <typename X>
ROOST_INLINE int32_t LargestBits(const X* x, int64_t inputs) {
  const Ints size = SplatInt(kSizeBits);
  Ints lanes = Ints{};
  int64_t i = 0;
  for (; i + 16 <= inputs; i += 16) {
    lanes = Max(lanes, And(Bits(Widen(x + i)), size));
  }
  int32_t largest = LargestOf(lanes);
  for (; i < inputs; ++i) {
    const float value = WidenOne(x[i]);
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    largest = std::max(largest, bits & kSizeBits);
  }
  return largest;
}

// Quantises a row, with the bits of `quantize_rows` in kernels/matrices/int8.py. `offset` is `kExcess` times the sum of
// the row, by which the sums of `Int8Kernel` are too large. A row with a NaN or an infinity gets the scale NaN, so that
// all its products are NaN.
template <typename X>
void QuantizeRow(const X* x, int64_t inputs, int8_t* out, float* scale, int32_t* offset) {
  const int32_t bits = LargestBits(x, inputs);
  if (bits >= kInfinityBits) {
    std::memset(out, 0, inputs);
    *scale = std::numeric_limits<float>::quiet_NaN();
    *offset = 0;
    return;
  }
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  largest = std::max(largest, 1e-30f);
  const float factor = 127.0f / largest;
  Ints sums = Ints{};
  int64_t i = 0;
  for (; i + 16 <= inputs; i += 16) {
    const Ints rounded = ToInts(Times(Widen(x + i), Splat(factor)));
    sums = Plus(sums, rounded);
    StoreBytes(out + i, rounded);
  }
  int32_t sum = TotalOf(sums);
  for (; i < inputs; ++i) {
    out[i] = static_cast<int8_t>(std::nearbyint(WidenOne(x[i]) * factor));
    sum += out[i];
  }
  *scale = largest * static_cast<float>(1.0 / 127.0);
  *offset = kExcess * sum;
}

}  // namespace
ROOST_TARGET_END
