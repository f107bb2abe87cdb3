// RMSNorm of rows `[R, D]` in bfloat16, alone or of the sum of two arrays; D is a multiple of 16.
//
// Holds the calls `rms_norm` and `add_rms_norm`.

#pragma once

#include <cmath>
#include <cstdint>

#include "buffers.h"
#include "threads.h"
#include "vectors.h"

ROOST_TARGET_BEGIN
namespace {

// Computes x * rsqrt(mean(x²) + eps) * (1 + scale) of a row, whose squares are added in the same order in any batch.
void NormRow(const uint16_t* x, const float* scale, float eps, int64_t width, uint16_t* out) {
  Floats squares = Floats{};
  for (int64_t e = 0; e < width; e += 16) squares = TimesPlus(Widen(x + e), Widen(x + e), squares);
  const Floats factor = Splat(1.0f / std::sqrt(TotalOf(squares) / width + eps));
  for (int64_t e = 0; e < width; e += 16) {
    const Floats gain = Plus(Splat(1.0f), Load(scale + e));
    Store(out + e, Times(Times(Widen(x + e), factor), gain));
  }
}

ffi::Error RmsNormImpl(ffi::ThreadPool pool, Eps eps, Bf16Buffer x, ffi::Buffer<ffi::F32> scale,
                       ffi::Result<Bf16Buffer> out) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  auto* const to = static_cast<uint16_t*>(out->untyped_data());
  ForEachRow(pool, rows, width, [&](int64_t r) {
    NormRow(Bf16Of(x) + r * width, scale.typed_data(), *eps, width, to + r * width);
  });
  return ffi::Error::Success();
}

ffi::Error AddRmsNormImpl(ffi::ThreadPool pool, Eps eps, Bf16Buffer x, Bf16Buffer y, ffi::Buffer<ffi::F32> scale,
                          ffi::Result<Bf16Buffer> sum, ffi::Result<Bf16Buffer> out) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  auto* const sums = static_cast<uint16_t*>(sum->untyped_data());
  auto* const to = static_cast<uint16_t*>(out->untyped_data());
  ForEachRow(pool, rows, width, [&](int64_t r) {
    for (int64_t e = r * width; e < (r + 1) * width; e += 16) {
      Store(sums + e, Plus(Widen(Bf16Of(x) + e), Widen(Bf16Of(y) + e)));
    }
    NormRow(sums + r * width, scale.typed_data(), *eps, width, to + r * width);
  });
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
