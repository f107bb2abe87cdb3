// Products of activations with packed matrices in 4 bits: y `[R, O]` is x `[R, I]` times a matrix `[O, I]`, plus a bias.
// Holds the calls `int4_product` and `int4_gated_mlp`.
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

#include "activations.h"
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

// Computes some strips for rows [r, r + Rows), or for fewer rows at the end, and calls store(sums, r) with each row's.
// `Fetch` is for the first rows.
template <bool Fetch, int Parts, int Rows, typename StoreRow>
ROOST_INLINE void Int4Tile(const Int4Strips& w, const int64_t (&strips)[Parts], const Int4Rows& x, int64_t r,
                           int64_t rows, const StoreRow& store) {
  const int64_t registers = w.group_registers();
  const uint8_t* at[Parts];
  const int8_t* taken[Rows];
  int64_t row[Rows];
  Floats totals[Rows][Parts] = {};
  for (int p = 0; p < Parts; ++p) at[p] = w.values + strips[p] * w.strip_bytes();
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
      const uint16_t* const scales = w.scales + (strips[p] * w.groups + g) * kStripOutputs;
      const Floats scale = LoadHalf(scales);
      ROOST_UNROLL
      for (int i = 0; i < Rows; ++i) totals[i][p] = AddScaled(totals[i][p], sums[i][p], scale);
      at[p] += registers * kGroupBytes;
    }
    for (int i = 0; i < Rows; ++i) taken[i] += registers * kInt4Inputs;
  }
  for (int i = 0; i < Rows && r + i < rows; ++i) {
    Floats scaled[Parts];
    for (int p = 0; p < Parts; ++p) scaled[p] = Apart(Times(totals[i][p], Splat(x.scales[r + i])));
    store(scaled, r + i);
  }
}

// Computes some strips for all rows.
template <int Parts, int Rows, typename StoreRow>
ROOST_INLINE void Int4Tiles(const Int4Strips& w, const int64_t (&strips)[Parts], const Int4Rows& x, int64_t rows,
                            const StoreRow& store) {
  Int4Tile<true, Parts, Rows>(w, strips, x, 0, rows, store);
  for (int64_t r = Rows; r < rows; r += Rows) Int4Tile<false, Parts, Rows>(w, strips, x, r, rows, store);
}

// Computes outputs [o, o + 16 * Parts) of all rows.
template <int Parts, int Rows, typename Y>
ROOST_INLINE void Int4Outputs(const Int4Strips& w, int64_t o, const Int4Rows& x, int64_t rows, const float* bias, Y* y,
                              int64_t outputs) {
  int64_t strips[Parts];
  for (int p = 0; p < Parts; ++p) strips[p] = o / kStripOutputs + p;
  Int4Tiles<Parts, Rows>(w, strips, x, rows, [&](const Floats(&sums)[Parts], int64_t r) {
    for (int p = 0; p < Parts; ++p) {
      const int64_t from = o + p * kStripOutputs;
      Store(y + r * outputs + from, AddBias(sums[p], bias, from));
    }
  });
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

// Computes gelu(gate) * up for outputs [begin, end) of the gate, which is the first half of the matrix; up is the second.
template <int Rows, typename Y>
void Int4Gated(const Int4Strips& w, int64_t begin, int64_t end, const Int4Rows& x, int64_t rows, const float* bias,
               Y* y, int64_t width) {
  for (int64_t o = begin; o < end; o += kStripOutputs) {
    const int64_t strips[2] = {o / kStripOutputs, (width + o) / kStripOutputs};
    Int4Tiles<2, Rows>(w, strips, x, rows, [&](const Floats(&sums)[2], int64_t r) {
      const Floats up = AddBias(sums[1], bias, width + o);
      Store(y + r * width + o, Times(Gelu(AddBias(sums[0], bias, o)), up));
    });
  }
}

// Computes `GatedMlp` of gated_mlp.h with packed matrices in 4 bits.
template <typename X>
void Int4GatedMlp(ffi::ThreadPool& pool, const X* x, int64_t all_rows, const Int4Strips& gate_up,
                  const float* gate_up_bias, const Int4Strips& down, const float* down_bias, X* y, int64_t outputs) {
  const int64_t rows = DistinctRows(x, all_rows, gate_up.inputs), width = down.inputs;
  thread_local std::vector<X> scratch;
  Grow(scratch, rows * width);
  X* const inner = scratch.data();
  const Int4Rows prepared = PrepareInt4(pool, x, rows, gate_up);
  InPieces(pool, width, gate_up.inputs, [=](int64_t begin, int64_t end) {
    if (rows == 1) return Int4Gated<1>(gate_up, begin, end, prepared, rows, gate_up_bias, inner, width);
    if constexpr (!kManyRegisters) return Int4Gated<2>(gate_up, begin, end, prepared, rows, gate_up_bias, inner, width);
    if (rows <= 4) return Int4Gated<4>(gate_up, begin, end, prepared, rows, gate_up_bias, inner, width);
    Int4Gated<8>(gate_up, begin, end, prepared, rows, gate_up_bias, inner, width);
  });
  MultiplyInt4(pool, inner, rows, down, down_bias, y, outputs);
  RepeatLast(y, rows, all_rows, outputs);
}

Int4Strips Int4StripsOf(const ffi::Buffer<ffi::U8>& w, const ffi::Buffer<ffi::F16>& scale, int64_t inputs) {
  return {w.typed_data(), reinterpret_cast<const uint16_t*>(scale.untyped_data()), inputs, scale.dimensions()[1]};
}

ffi::Error Int4ProductImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                           ffi::Buffer<ffi::F16> scale, ffi::Buffer<ffi::F32> bias, ffi::Result<ffi::AnyBuffer> y) {
  const Int4Strips strips = Int4StripsOf(w, scale, x.dimensions()[1]);
  WithTypes(x, *y, [&](const auto* from, auto* to) {
    MultiplyInt4(pool, from, x.dimensions()[0], strips, BiasOf(bias), to, y->dimensions()[1]);
  });
  return ffi::Error::Success();
}

ffi::Error Int4GatedMlpImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> gate_up,
                            ffi::Buffer<ffi::F16> gate_up_scale, ffi::Buffer<ffi::F32> gate_up_bias,
                            ffi::Buffer<ffi::U8> down, ffi::Buffer<ffi::F16> down_scale,
                            ffi::Buffer<ffi::F32> down_bias, ffi::Result<ffi::AnyBuffer> y) {
  const int64_t width = static_cast<int64_t>(gate_up_bias.element_count()) / 2;
  const Int4Strips first = Int4StripsOf(gate_up, gate_up_scale, x.dimensions()[1]);
  const Int4Strips second = Int4StripsOf(down, down_scale, width);
  WithType(x, [&](auto* from) {
    auto* const to = static_cast<decltype(from)>(y->untyped_data());
    Int4GatedMlp(pool, from, x.dimensions()[0], first, gate_up_bias.typed_data(), second, BiasOf(down_bias), to,
                 y->dimensions()[1]);
  });
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
