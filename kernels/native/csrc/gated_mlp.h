// Gated MLP with packed matrices: y `[R, D]` is down(gelu(gate(x)) * up(x)) of x `[R, D]`, with F features between.
//
// Gate and up are one matrix `[2 F, D]`; down is `[D, F]`. Holds the calls `int8_gated_mlp` and `bf16_gated_mlp`.

#pragma once

#include <cstdint>
#include <vector>

#include "activations.h"
#include "products.h"

ROOST_TARGET_BEGIN
namespace {

// Computes gelu(gate) * up for outputs [begin, end) of the gate, which is the first half of the matrix; up is the
// second.
template <typename K, int Count, typename Y, typename Finish>
void GatedStrips(const PackedMatrix& w, int64_t begin, int64_t end, const typename K::X* x, int64_t rows,
                 int64_t inputs, Y* y, const Finish& finish) {
  const int64_t outputs = w.outputs / 2, strip_bytes = inputs / K::kGroup * kGroupBytes;
  for (int64_t o = begin; o < end; o += kStripOutputs) {
    const uint8_t* const gate = w.values + o / kStripOutputs * strip_bytes;
    const uint8_t* const strips[2] = {gate, gate + outputs / kStripOutputs * strip_bytes};
    PackedStrips<K, 2, Count>(strips, strip_bytes, x, rows, inputs, [&](const typename K::Lanes(&sums)[2], int64_t r) {
      const Floats up = finish(sums[1], outputs + o, r);
      Store(y + r * outputs + o, Times(Gelu(finish(sums[0], o, r)), up));
    });
  }
}

// Computes down(gelu(gate(x)) * up(x)); the product of gate and up is rounded to the type of x. Equal rows at the end are
// computed once.
template <typename K, typename X>
void GatedMlp(ffi::ThreadPool& pool, const X* x, int64_t all_rows, int64_t inputs, const PackedMatrix& gate_up,
              const PackedMatrix& down, X* y) {
  const int64_t rows = DistinctRows(x, all_rows, inputs);
  const int64_t width = gate_up.outputs / 2;
  thread_local std::vector<X> scratch;
  Grow(scratch, rows * width);
  X* const inner = scratch.data();
  const Rows<K> prepared = Prepare<K, 0>(pool, x, rows, inputs);
  const auto finish = FinishOf(prepared, gate_up);
  InPieces(pool, width, 2 * inputs * 4 / K::kGroup, [=](int64_t begin, int64_t end) {
    const auto* const values = prepared.values;
    if (rows == 1) return GatedStrips<K, 1>(gate_up, begin, end, values, rows, inputs, inner, finish);
    if constexpr (!kManyRegisters) return GatedStrips<K, 2>(gate_up, begin, end, values, rows, inputs, inner, finish);
    if (rows <= 4) return GatedStrips<K, 4>(gate_up, begin, end, values, rows, inputs, inner, finish);
    GatedStrips<K, 8>(gate_up, begin, end, values, rows, inputs, inner, finish);
  });
  Multiply<K, 1>(pool, inner, rows, width, down, y);
  RepeatLast(y, rows, all_rows, down.outputs);
}

ffi::Error Int8GatedMlpImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> gate_up,
                            ffi::Buffer<ffi::F32> gate_up_scale, ffi::Buffer<ffi::F32> gate_up_bias,
                            ffi::Buffer<ffi::U8> down, ffi::Buffer<ffi::F32> down_scale,
                            ffi::Buffer<ffi::F32> down_bias, ffi::Result<ffi::AnyBuffer> y) {
  const PackedMatrix first{gate_up.typed_data(), gate_up_scale.typed_data(), gate_up_bias.typed_data(),
                           static_cast<int64_t>(gate_up_bias.element_count())};
  const PackedMatrix second{down.typed_data(), down_scale.typed_data(), down_bias.typed_data(), y->dimensions()[1]};
  WithType(x, [&](auto* from) {
    auto* const to = static_cast<decltype(from)>(y->untyped_data());
    GatedMlp<Int8Kernel>(pool, from, x.dimensions()[0], x.dimensions()[1], first, second, to);
  });
  return ffi::Error::Success();
}

ffi::Error Bf16GatedMlpImpl(ffi::ThreadPool pool, IsInPairs in_pairs, ffi::Buffer<ffi::BF16> x,
                            ffi::Buffer<ffi::BF16> gate_up, ffi::Buffer<ffi::F32> gate_up_bias,
                            ffi::Buffer<ffi::BF16> down, ffi::Buffer<ffi::F32> down_bias,
                            ffi::Result<ffi::Buffer<ffi::BF16>> y) {
  const PackedMatrix first{BytesOf(gate_up), nullptr, gate_up_bias.typed_data(),
                           static_cast<int64_t>(gate_up_bias.element_count())};
  const PackedMatrix second{BytesOf(down), nullptr, down_bias.typed_data(), y->dimensions()[1]};
  auto* const to = static_cast<uint16_t*>(y->untyped_data());
  const auto with = [&](auto kernel) {
    GatedMlp<decltype(kernel)>(pool, Bf16Of(x), x.dimensions()[0], x.dimensions()[1], first, second, to);
  };
  WithBf16Kernel(*in_pairs, with);
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
