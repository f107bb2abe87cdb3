// Products of activations with packed matrices in 4 bits: y `[R, O]` is x `[R, I]` times a matrix `[O, I]`, plus a bias.
//
// A packed matrix is `[O / 16, I / 8, 16, 4]`, as `pack_int4` in packed.py makes it: a register has eight inputs of
// sixteen outputs, the first four in the lower halves of the bytes, each with 8 added. Scales are `[O / 16, G, 16]` in
// float16. Each row of x is quantised to int8 first. Sums of a group's products are exact; scaled sums are added in
// float32, group after group, with the bits of `Int4Matrix.dot` in roost.kernels.matrices.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "buffers.h"
#include "packed_matrix.h"
#include "products.h"
#include "quantization.h"
#include "threads.h"

ROOST_TARGET_BEGIN
namespace {

constexpr int64_t kInt4Inputs = 8;  // of each output in a register

// A packed matrix in 4 bits, of `groups` groups for each output.
struct Int4Strips {
  const uint8_t* values;
  const uint16_t* scales;
  int64_t inputs;
  int64_t groups;

  int64_t strip_bytes() const { return inputs / kInt4Inputs * kGroupBytes; }
  int64_t group_registers() const { return inputs / groups / kInt4Inputs; }
};

// Rows of activations in int8; `offsets` `[R, G]` are what the 8 that was added to weights adds to each group's sums.
struct Int4Rows {
  const int8_t* values;
  const float* scales;
  const int32_t* offsets;
};

ROOST_INLINE Ints BroadcastFour(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return SplatInt(four);
}

// Adds the products of a group of `Parts` strips with `Rows` rows to sums. With `Fetch`, the strips are prefetched.
template <bool Fetch, int Parts, int Rows>
ROOST_INLINE void AddInt4Group(const uint8_t* const (&w)[Parts], const int8_t* const (&x)[Rows], int64_t registers,
                               Ints (&sums)[Rows][Parts]) {
  constexpr int64_t kAhead = 16 * kGroupBytes;
  const Ints half = SplatByte(15);
  for (int64_t i = 0; i < registers; ++i) {
    Ints low[Parts], high[Parts];
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) {
      const Ints both = LoadBits(w[p] + i * kGroupBytes);
      if constexpr (Fetch) _mm_prefetch(reinterpret_cast<const char*>(w[p] + i * kGroupBytes + kAhead), _MM_HINT_T0);
      low[p] = And(both, half);
      high[p] = And(ShiftRightWords<4>(both), half);
    }
    ROOST_UNROLL
    for (int r = 0; r < Rows; ++r) {
      const Ints first = BroadcastFour(x[r] + i * kInt4Inputs), second = BroadcastFour(x[r] + i * kInt4Inputs + 4);
      ROOST_UNROLL
      for (int p = 0; p < Parts; ++p) {
        sums[r][p] = AddNibbles(sums[r][p], low[p], first, high[p], second);
      }
    }
  }
}

// Returns total + sums * scale, rounded twice.
ROOST_INLINE Floats AddScaled(Floats total, Ints sums, Floats scale) {
  return Plus(total, Apart(Times(ToFloats(sums), scale)));
}

// Computes outputs [o, o + 16 * Parts) of rows [r, r + Rows), or of fewer rows at the end. `Fetch` is for the first rows.
template <bool Fetch, int Parts, int Rows, typename Y>
ROOST_INLINE void Int4Tile(const Int4Strips& w, int64_t o, const Int4Rows& x, int64_t r, int64_t rows,
                           const float* bias, Y* y, int64_t outputs) {
  const int64_t registers = w.group_registers(), strip = o / kStripOutputs;
  const uint8_t* at[Parts];
  const int8_t* taken[Rows];
  int64_t row[Rows];
  Floats totals[Rows][Parts] = {};
  for (int p = 0; p < Parts; ++p) at[p] = w.values + (strip + p) * w.strip_bytes();
  for (int i = 0; i < Rows; ++i) taken[i] = x.values + (row[i] = std::min(r + i, rows - 1)) * w.inputs;
  for (int64_t g = 0; g < w.groups; ++g) {
    Ints sums[Rows][Parts];
    ROOST_UNROLL
    for (int i = 0; i < Rows; ++i) {
      ROOST_UNROLL
      for (int p = 0; p < Parts; ++p) sums[i][p] = SplatInt(x.offsets[row[i] * w.groups + g]);
    }
    AddInt4Group<Fetch, Parts, Rows>(at, taken, registers, sums);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) {
      const uint16_t* const scales = w.scales + ((strip + p) * w.groups + g) * kStripOutputs;
      const Floats scale = LoadHalf(scales);
      ROOST_UNROLL
      for (int i = 0; i < Rows; ++i) totals[i][p] = AddScaled(totals[i][p], sums[i][p], scale);
      at[p] += registers * kGroupBytes;
    }
    for (int i = 0; i < Rows; ++i) taken[i] += registers * kInt4Inputs;
  }
  for (int i = 0; i < Rows && r + i < rows; ++i) {
    for (int p = 0; p < Parts; ++p) {
      const int64_t from = o + p * kStripOutputs;
      const Floats scaled = Apart(Times(totals[i][p], Splat(x.scales[r + i])));
      Store(y + (r + i) * outputs + from, AddBias(scaled, bias, from));
    }
  }
}

// Computes outputs [o, o + 16 * Parts) of all rows.
template <int Parts, int Rows, typename Y>
ROOST_INLINE void Int4Outputs(const Int4Strips& w, int64_t o, const Int4Rows& x, int64_t rows, const float* bias, Y* y,
                              int64_t outputs) {
  Int4Tile<true, Parts, Rows>(w, o, x, 0, rows, bias, y, outputs);
  for (int64_t r = Rows; r < rows; r += Rows) Int4Tile<false, Parts, Rows>(w, o, x, r, rows, bias, y, outputs);
}

// Computes outputs [begin, end) of all rows, `Parts` strips and `Rows` rows at a time; both bounds are multiples of 16.
template <int Parts, int Rows, typename Y>
void Int4Range(const Int4Strips& w, int64_t begin, int64_t end, const Int4Rows& x, int64_t rows, const float* bias,
               Y* y, int64_t outputs) {
  int64_t o = begin;
  for (; o + Parts * kStripOutputs <= end; o += Parts * kStripOutputs) {
    Int4Outputs<Parts, Rows>(w, o, x, rows, bias, y, outputs);
  }
  for (; o < end; o += kStripOutputs) Int4Outputs<1, Rows>(w, o, x, rows, bias, y, outputs);
}

// Stores -8 times the sum of each group of a row in int8.
void StoreInt4Offsets(const int8_t* x, int64_t size, int64_t groups, int32_t* offsets) {
  for (int64_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += x[g * size + i];
    offsets[g] = -8 * sum;
  }
}

// Quantises rows to int8, in scratch buffers that the thread reuses.
template <typename X>
Int4Rows PrepareInt4(ffi::ThreadPool& pool, const X* x, int64_t rows, const Int4Strips& w) {
  thread_local std::vector<int8_t> values;
  thread_local std::vector<float> scales;
  thread_local std::vector<int32_t> offsets;
  Grow(values, rows * w.inputs);
  Grow(scales, rows);
  Grow(offsets, rows * w.groups);
  int8_t* const v = values.data();
  float* const s = scales.data();
  int32_t* const f = offsets.data();
  const int64_t inputs = w.inputs, groups = w.groups;
  ForEachRow(pool, rows, inputs, [=](int64_t r) {
    int32_t unused;
    QuantizeRow(x + r * inputs, inputs, v + r * inputs, s + r, &unused);
    StoreInt4Offsets(v + r * inputs, inputs / groups, groups, f + r * groups);
  });
  return {v, s, f};
}

// Computes the product of all rows with a packed matrix in 4 bits; equal rows at the end are computed once.
template <typename X, typename Y>
void MultiplyInt4(ffi::ThreadPool& pool, const X* x, int64_t all_rows, const Int4Strips& w, const float* bias, Y* y,
                  int64_t outputs) {
  const int64_t rows = DistinctRows(x, all_rows, w.inputs);
  const Int4Rows prepared = PrepareInt4(pool, x, rows, w);
  InPieces(pool, outputs, w.inputs / 2, [=](int64_t begin, int64_t end) {
    if (rows == 1) return Int4Range<4, 1>(w, begin, end, prepared, rows, bias, y, outputs);
    if constexpr (!kManyRegisters) return Int4Range<1, 4>(w, begin, end, prepared, rows, bias, y, outputs);
    if (rows == 2) return Int4Range<3, 2>(w, begin, end, prepared, rows, bias, y, outputs);
    if (rows <= 4) return Int4Range<3, 4>(w, begin, end, prepared, rows, bias, y, outputs);
    Int4Range<2, 8>(w, begin, end, prepared, rows, bias, y, outputs);
  });
  RepeatLast(y, rows, all_rows, outputs);
}

ffi::Error Int4ProductImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                           ffi::Buffer<ffi::F16> scale, ffi::Buffer<ffi::F32> bias, ffi::Result<ffi::AnyBuffer> y) {
  const auto* const scales = reinterpret_cast<const uint16_t*>(scale.untyped_data());
  const Int4Strips strips{w.typed_data(), scales, x.dimensions()[1], scale.dimensions()[1]};
  WithTypes(x, *y, [&](const auto* from, auto* to) {
    MultiplyInt4(pool, from, x.dimensions()[0], strips, BiasOf(bias), to, y->dimensions()[1]);
  });
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
