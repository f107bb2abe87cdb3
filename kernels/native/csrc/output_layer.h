// Output layer with a packed matrix `[V, D]`: logits `[R, V]` of x `[R, D]`, or only the largest one of each row and
// its token, both `[R]`.
//
// Holds the calls `int8_logits`, `bf16_logits`, `int8_argmax` and `bf16_argmax`.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "activations.h"
#include "products.h"

ROOST_TARGET_BEGIN
namespace {

// Converts bits of floats to integers in the order of the floats, and back: -NaN, -inf, ..., -0, 0, ..., inf, NaN.
ROOST_INLINE int32_t InOrder(int32_t bits) { return bits ^ ((bits >> 31) & kSizeBits); }
ROOST_INLINE Ints InOrder(Ints bits) { return Xor(bits, And(ShiftRightSigned<31>(bits), SplatInt(kSizeBits))); }

// The largest of some logits, as an integer of `InOrder`, and the lowest token that has it.
struct Best {
  int32_t key, token;
};

// A model's output layer: logits are cap * tanh(products / cap), or the products if the cap is 0. Of all rows of x,
// the first `rows` are distinct; see `DistinctRows`.
template <typename K>
struct OutputLayer {
  Rows<K> x;
  int64_t rows, all_rows, inputs;
  PackedMatrix w;
  float cap;

  int64_t BytesPerOutput() const { return inputs * 4 / K::kGroup; }

  // Computes products [begin, end) of the distinct rows. `y` is the position of product 0 of the first row; rows are
  // `stride` apart.
  void Products(int64_t begin, int64_t end, float* y, int64_t stride) const {
    PackedProduct<K>(Strips<K>{w.values, inputs}, begin, end, x.values, rows, y, stride, FinishOf(x, w));
  }

  // Returns the logits of products.
  ROOST_INLINE Floats Logits(Floats products) const {
    if (cap == 0.0f) return products;
    const Floats factor = Splat(cap);
    return Times(factor, Tanh(Over(products, factor)));
  }

  // Returns the best of a row's logits [begin, end), given their products; both are multiples of 16.
  Best BestOf(const float* products, int64_t begin, int64_t end) const {
    const Floats bound = Splat(Bound(products, begin, end));
    Ints keys = SplatInt(std::numeric_limits<int32_t>::min()), at = SplatInt(begin);
    for (int64_t o = begin; o < end; o += 16) {
      const Floats some = Widen(products + o);
      if (AreLess(some, bound)) continue;
      const Ints others = InOrder(Bits(Logits(some)));
      const Mask is_larger = IsGreater(others, keys);
      keys = Select(is_larger, others, keys);
      at = Select(is_larger, SplatInt(o), at);
    }
    const int32_t largest = LargestOf(keys);
    const Mask is_largest = IsEqual(keys, SplatInt(largest));
    return {largest, SmallestOf(is_largest, Plus(at, LaneNumbers()))};
  }

 private:
  // Returns a bound below which no product has the largest logit. Where tanh is steep, products that differ by cap /
  // 1024 have logits that differ by a hundred times the rounding error. Where it is flat, many logits may be equal.
  float Bound(const float* products, int64_t begin, int64_t end) const {
    Floats largest = Splat(-std::numeric_limits<float>::infinity());
    for (int64_t o = begin; o < end; o += 16) largest = Max(Widen(products + o), largest);  // ignores NaNs
    const float top = LargestOf(largest);
    return std::abs(top) < 2.0f * cap ? top - cap / 1024.0f : -std::numeric_limits<float>::infinity();
  }
};

// Computes the logits of all rows.
template <typename K>
void Logits(ffi::ThreadPool& pool, const OutputLayer<K>& layer, float* y) {
  const int64_t outputs = layer.w.outputs;
  InPieces(pool, outputs, layer.BytesPerOutput(), [&](int64_t begin, int64_t end) {
    layer.Products(begin, end, y, outputs);
    if (layer.cap == 0.0f) return;
    for (int64_t r = 0; r < layer.rows; ++r) {
      for (float* at = y + r * outputs + begin; at < y + r * outputs + end; at += 16) {
        Store(at, layer.Logits(Widen(at)));
      }
    }
  });
  RepeatLast(y, layer.rows, layer.all_rows, outputs);
}

// Computes the largest logit of each row and the lowest token that has it. Products of a piece stay in the cache.
template <typename K>
void Argmax(ffi::ThreadPool& pool, const OutputLayer<K>& layer, int32_t* tokens, float* largest) {
  const int64_t size = PieceOutputs(layer.BytesPerOutput()), pieces = (layer.w.outputs + size - 1) / size;
  thread_local std::vector<Best> scratch;
  Grow(scratch, pieces * layer.rows);
  Best* const best = scratch.data();
  ForEach(pool, pieces, [&](int64_t i) {
    thread_local std::vector<float> products;
    Grow(products, layer.rows * size);
    const int64_t begin = i * size, end = std::min(layer.w.outputs, begin + size);
    float* const y = products.data() - begin;
    layer.Products(begin, end, y, size);
    for (int64_t r = 0; r < layer.rows; ++r) best[i * layer.rows + r] = layer.BestOf(y + r * size, begin, end);
  });
  for (int64_t r = 0; r < layer.rows; ++r) {
    Best row = best[r];
    for (int64_t i = 1; i < pieces; ++i) {
      if (best[i * layer.rows + r].key > row.key) row = best[i * layer.rows + r];
    }
    const int32_t bits = InOrder(row.key);
    tokens[r] = row.token;
    std::memcpy(largest + r, &bits, sizeof bits);
  }
  RepeatLast(tokens, layer.rows, layer.all_rows, 1);
  RepeatLast(largest, layer.rows, layer.all_rows, 1);
}

// Calls `call` with an `OutputLayer` in int8.
template <typename Call>
ffi::Error WithInt8Layer(ffi::ThreadPool& pool, float cap, const ffi::AnyBuffer& x, const ffi::Buffer<ffi::U8>& w,
                         const ffi::Buffer<ffi::F32>& scale, const Call& call) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1];
  const PackedMatrix matrix{w.typed_data(), scale.typed_data(), nullptr, static_cast<int64_t>(scale.element_count())};
  WithType(x, [&](const auto* from) {
    const int64_t n = DistinctRows(from, rows, inputs);
    call(OutputLayer<Int8Kernel>{Prepare<Int8Kernel, 0>(pool, from, n, inputs), n, rows, inputs, matrix, cap});
  });
  return ffi::Error::Success();
}

// Calls `call` with an `OutputLayer` in bfloat16.
template <typename Call>
ffi::Error WithBf16Layer(ffi::ThreadPool& pool, bool in_pairs, float cap, const Bf16Buffer& x, const Bf16Buffer& w,
                         const Call& call) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1];
  const PackedMatrix matrix{BytesOf(w), nullptr, nullptr, w.dimensions()[0] * kStripOutputs};
  const auto with = [&](auto kernel) {
    using K = decltype(kernel);
    const int64_t n = DistinctRows(Bf16Of(x), rows, inputs);
    call(OutputLayer<K>{Prepare<K, 0>(pool, Bf16Of(x), n, inputs), n, rows, inputs, matrix, cap});
  };
  WithBf16Kernel(in_pairs, with);
  return ffi::Error::Success();
}

ffi::Error Int8LogitsImpl(ffi::ThreadPool pool, Cap cap, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                          ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::F32> y) {
  return WithInt8Layer(pool, *cap, x, w, scale, [&](const auto& layer) { Logits(pool, layer, y->typed_data()); });
}

ffi::Error Int8ArgmaxImpl(ffi::ThreadPool pool, Cap cap, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                          ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::S32> tokens,
                          ffi::ResultBuffer<ffi::F32> largest) {
  return WithInt8Layer(pool, *cap, x, w, scale,
                       [&](const auto& layer) { Argmax(pool, layer, tokens->typed_data(), largest->typed_data()); });
}

ffi::Error Bf16LogitsImpl(ffi::ThreadPool pool, IsInPairs in_pairs, Cap cap, Bf16Buffer x, Bf16Buffer w,
                          ffi::ResultBuffer<ffi::F32> y) {
  return WithBf16Layer(pool, *in_pairs, *cap, x, w, [&](const auto& layer) { Logits(pool, layer, y->typed_data()); });
}

ffi::Error Bf16ArgmaxImpl(ffi::ThreadPool pool, IsInPairs in_pairs, Cap cap, Bf16Buffer x, Bf16Buffer w,
                          ffi::ResultBuffer<ffi::S32> tokens, ffi::ResultBuffer<ffi::F32> largest) {
  return WithBf16Layer(pool, *in_pairs, *cap, x, w,
                       [&](const auto& layer) { Argmax(pool, layer, tokens->typed_data(), largest->typed_data()); });
}

}  // namespace
ROOST_TARGET_END
