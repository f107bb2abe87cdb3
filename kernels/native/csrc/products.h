// Products of activations with packed matrices: y `[R, O]` is x `[R, I]` times a matrix `[O, I]`, plus a bias `[O]`.
//
// In int8, each row of x is quantised first, and sums are scaled by row and by output. In bfloat16, sums are float32.
// Holds the calls `int8_product` and `bf16_product`, and the steps that gated_mlp.h and output_layer.h share with them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "buffers.h"
#include "packed_matrix.h"
#include "quantization.h"
#include "threads.h"

ROOST_TARGET_BEGIN
namespace {

// Returns the number of outputs in a piece of a matrix, which one thread computes: whole triples of strips of at least
// 64 KiB, so that threads rarely contend for the next piece.
int64_t PieceOutputs(int64_t bytes_per_output) {
  constexpr int64_t kTriple = 3 * kStripOutputs;
  return std::max<int64_t>(1, (65536 / bytes_per_output + kTriple - 1) / kTriple) * kTriple;
}

// Calls piece(begin, end) for the pieces of a matrix's outputs, on all threads.
template <typename Piece>
void InPieces(ffi::ThreadPool& pool, int64_t outputs, int64_t bytes_per_output, const Piece& piece) {
  const int64_t size = PieceOutputs(bytes_per_output);
  ForEach(pool, (outputs + size - 1) / size,
          [&](int64_t i) { piece(i * size, std::min(outputs, (i + 1) * size)); });
}

ROOST_INLINE Floats AddBias(Floats sums, const float* bias, int64_t o) {
  return bias == nullptr ? sums : Plus(sums, Load(bias + o));
}

// Scales sums of int8 products to float32, and adds the bias.
struct FinishInt8 {
  const float* row_scales;
  const int32_t* offsets;
  const float* scales;
  const float* bias;

  // Returns sixteen outputs from `o` on of row `r`.
  ROOST_INLINE Floats operator()(Ints sums, int64_t o, int64_t r) const {
    const Floats scale = Times(Splat(row_scales[r]), Load(scales + o));
    const Ints exact = Minus(sums, SplatInt(offsets[r]));
    // Bounded as in `quantized_dot` in kernels/matrices/int8.py. The maximum returns its second operand if that is
    // NaN, and keeps product and sum apart, which as one instruction would round once where XLA rounds twice.
    const Floats lowest = Splat(std::numeric_limits<float>::lowest());
    return AddBias(Max(lowest, Times(ToFloats(exact), scale)), bias, o);
  }
};

// Adds the bias to sums of bfloat16 products.
struct FinishBf16 {
  const float* bias;

  ROOST_INLINE Floats operator()(Floats sums, int64_t o, int64_t) const { return AddBias(sums, bias, o); }
};

// Rows of activations in the dtype that a kernel multiplies; in int8, with the scale and offset of each row.
template <typename K>
struct Rows {
  const typename K::X* values;
  const float* scales = nullptr;
  const int32_t* offsets = nullptr;
};

// Quantises or widens rows for a kernel. `Which` distinguishes scratch buffers that one call needs at the same time.
template <typename K, int Which, typename X>
Rows<K> Prepare(ffi::ThreadPool& pool, const X* x, int64_t rows, int64_t inputs) {
  if constexpr (std::is_same_v<typename K::X, X>) {
    return {x};
  } else {
    thread_local std::vector<typename K::X> values;
    thread_local std::vector<float> scales;
    thread_local std::vector<int32_t> offsets;
    Grow(values, rows * inputs);
    Grow(scales, rows);
    Grow(offsets, rows);
    auto* const v = values.data();
    float* const s = scales.data();
    int32_t* const f = offsets.data();
    ForEachRow(pool, rows, inputs, [=](int64_t r) {
      if constexpr (std::is_same_v<K, Int8Kernel>) {
        QuantizeRow(x + r * inputs, inputs, v + r * inputs, s + r, f + r);
      } else {
        for (int64_t i = r * inputs; i < (r + 1) * inputs; ++i) v[i] = WidenOne(x[i]);
      }
    });
    return {v, s, f};
  }
}

// Returns the number of rows without those at the end that repeat the one before them, as padding does.
template <typename X>
int64_t DistinctRows(const X* x, int64_t rows, int64_t inputs) {
  while (rows > 1 && std::memcmp(x + (rows - 1) * inputs, x + (rows - 2) * inputs, inputs * sizeof *x) == 0) --rows;
  return rows;
}

// Copies the last of the first n rows to the others.
template <typename Y>
void RepeatLast(Y* y, int64_t n, int64_t rows, int64_t outputs) {
  for (int64_t r = n; r < rows; ++r) std::memcpy(y + r * outputs, y + (n - 1) * outputs, outputs * sizeof *y);
}

// A packed matrix with its scales, which are null in bfloat16, and the bias of its outputs, or null.
struct PackedMatrix {
  const uint8_t* values;
  const float* scales;
  const float* bias;
  int64_t outputs;
};

template <typename K>
auto FinishOf(const Rows<K>& x, const PackedMatrix& w) {
  if constexpr (std::is_same_v<K, Int8Kernel>) {
    return FinishInt8{x.scales, x.offsets, w.scales, w.bias};
  } else {
    return FinishBf16{w.bias};
  }
}

// Computes the product of all rows with a packed matrix; equal rows at the end are computed once.
template <typename K, int Which, typename X, typename Y>
void Multiply(ffi::ThreadPool& pool, const X* x, int64_t all_rows, int64_t inputs, const PackedMatrix& w, Y* y) {
  const int64_t rows = DistinctRows(x, all_rows, inputs);
  const Rows<K> prepared = Prepare<K, Which>(pool, x, rows, inputs);
  const auto finish = FinishOf(prepared, w);
  InPieces(pool, w.outputs, inputs * 4 / K::kGroup, [=](int64_t begin, int64_t end) {
    PackedProduct<K>(Strips<K>{w.values, inputs}, begin, end, prepared.values, rows, y, w.outputs, finish);
  });
  RepeatLast(y, rows, all_rows, w.outputs);
}

ffi::Error Int8ProductImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                           ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> bias, ffi::Result<ffi::AnyBuffer> y) {
  const PackedMatrix matrix{w.typed_data(), scale.typed_data(), BiasOf(bias), y->dimensions()[1]};
  WithTypes(x, *y, [&](const auto* from, auto* to) {
    Multiply<Int8Kernel, 0>(pool, from, x.dimensions()[0], x.dimensions()[1], matrix, to);
  });
  return ffi::Error::Success();
}

ffi::Error Bf16ProductImpl(ffi::ThreadPool pool, IsInPairs in_pairs, ffi::Buffer<ffi::BF16> x, ffi::Buffer<ffi::BF16> w,
                           ffi::Buffer<ffi::F32> bias, ffi::Result<ffi::AnyBuffer> y) {
  const PackedMatrix matrix{BytesOf(w), nullptr, BiasOf(bias), y->dimensions()[1]};
  WithType(*y, [&](auto* to) {
    const auto with = [&](auto kernel) {
      Multiply<decltype(kernel), 0>(pool, Bf16Of(x), x.dimensions()[0], x.dimensions()[1], matrix, to);
    };
    WithBf16Kernel(*in_pairs, with);
  });
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
