// Attention of a prefill chunk: queries `[B, T, N, d]` to a ring `[B, W, d]`, which is only read, and to the chunk.
//
// Keys and values `[B, T, d]` become packed matrices. Holds the call `prefill_attention`.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "activations.h"
#include "buffers.h"
#include "packed_matrix.h"
#include "products.h"
#include "threads.h"

ROOST_TARGET_BEGIN
namespace {

constexpr int64_t kTileTokens = 8;  // tokens whose scores, of all heads, stay in the L2 cache

// Attention of a row's chunk to the window before it and to itself. Keys and values become packed matrices whose first
// position is a multiple of 16, and are added in the order of positions. So a query's bits depend on its position and
// on the keys and values up to there, but not on where chunks begin.
template <typename K>
struct ChunkAttention {
  const typename K::X* q;  // [tokens, heads, size]
  const uint16_t* k;       // [tokens, size]
  const uint16_t* v;
  const uint16_t* ring_k;  // [window, size]
  const uint16_t* ring_v;
  int64_t start, tokens, heads, size, window;
  uint16_t* out;  // [tokens, heads, size]

  void Run(ffi::ThreadPool& pool) const {
    const int64_t begin = std::max<int64_t>(0, start - window) / 16 * 16, strips = (start + tokens - begin + 15) / 16;
    thread_local std::vector<Line> lines;
    Grow(lines, strips * size + size / 32 + 1);
    Packed packed{begin, strips * 16, reinterpret_cast<uint8_t*>(lines.data()), nullptr};
    packed.values = packed.keys + strips * 32 * size;
    auto* const zeros = reinterpret_cast<uint16_t*>(packed.values + strips * 32 * size);
    std::fill(zeros, zeros + size, 0);
    ForEach(pool, strips, [=, this](int64_t i) { Pack(packed, 16 * i, zeros); });
    ForEach(pool, (tokens + kTileTokens - 1) / kTileTokens, [=, this](int64_t i) {
      Attend(packed, i * kTileTokens, std::min(tokens, (i + 1) * kTileTokens));
    });
  }

 private:
  // Packed keys and values of positions [begin, begin + count). A position is an output of keys and an input of values.
  struct Packed {
    int64_t begin, count;
    uint8_t* keys;
    uint8_t* values;
  };

  // Returns the key or value of a position; `zeros` for positions outside of the window and the chunk.
  const uint16_t* At(const uint16_t* chunk, const uint16_t* ring, int64_t position, const uint16_t* zeros) const {
    if (position >= start + tokens || position < start - window) return zeros;
    return position >= start ? chunk + (position - start) * size : ring + position % window * size;
  }

  // Packs positions [begin + i, begin + i + 16).
  void Pack(const Packed& packed, int64_t i, const uint16_t* zeros) const {
    auto* const keys = reinterpret_cast<uint32_t*>(packed.keys + i * 2 * size);
    for (int64_t lane = 0; lane < 16; ++lane) {
      const uint16_t* const key = At(k, ring_k, packed.begin + i + lane, zeros);
      for (int64_t e = 0; e < size; e += 2) std::memcpy(keys + e * 8 + lane, key + e, sizeof *keys);
    }
    for (int64_t j = i; j < i + 16; j += 2) {
      const uint16_t* const even = At(v, ring_v, packed.begin + j, zeros);
      const uint16_t* const odd = At(v, ring_v, packed.begin + j + 1, zeros);
      for (int64_t e = 0; e < size; e += 16) {
        const Ints low = ShiftRight<16>(Bits(Widen(even + e)));
        StoreBits(packed.values + (e / 16 * packed.count + j) * 32, Or(low, Bits(Widen(odd + e))));
      }
    }
  }

  // Computes the outputs of all heads of tokens [first, last).
  void Attend(const Packed& packed, int64_t first, int64_t last) const {
    const int64_t from = (std::max<int64_t>(0, start + first - window) - packed.begin) / 16 * 16;
    const int64_t count = (start + last - packed.begin + 15) / 16 * 16 - from, rows = (last - first) * heads;
    thread_local std::vector<float> scores, totals;
    thread_local std::vector<typename K::X> weights;
    Grow(scores, rows * count);
    Grow(totals, rows);
    Grow(weights, rows * count);
    const Floats scale = Splat(1.0f / std::sqrt(static_cast<float>(size)));
    PackedProduct<K>(Strips<K>{packed.keys + from * 2 * size, size}, 0, count, q + first * heads * size, rows,
                     scores.data(), count, [=](Floats sums, int64_t, int64_t) { return Times(sums, scale); });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = start + first + r / heads, own = position - packed.begin - from;
      const int64_t oldest = std::max<int64_t>(0, position - window) - packed.begin - from;
      totals[r] = Weigh(scores.data() + r * count, count, oldest, own + 1, weights.data() + r * count);
    }
    const float* const divisors = totals.data();
    PackedProduct<K>(Strips<K>{packed.values + from * 32, count, packed.count * 32}, 0, size, weights.data(), rows,
                     out + first * heads * size, size, [=](Floats sums, int64_t, int64_t r) {
                       return Over(sums, Splat(divisors[r]));
                     });
  }

  // Computes the weights of scores [begin, end), and zeros for the others. Returns the sum of the weights.
  static float Weigh(const float* scores, int64_t count, int64_t begin, int64_t end, typename K::X* weights) {
    const auto seen = [=](int64_t w) { return LanesIn(begin - w, end - w); };
    Floats largest = Splat(-std::numeric_limits<float>::infinity());
    for (int64_t w = 0; w < count; w += 16) largest = Select(seen(w), Max(largest, Load(scores + w)), largest);
    const Floats top = Splat(LargestOf(largest));
    Floats sums = Floats{};
    for (int64_t w = 0; w < count; w += 16) {
      const Floats some = Select(seen(w), Exp(Minus(Load(scores + w), top)), Floats{});
      sums = Plus(sums, some);
      Store(weights + w, some);
    }
    return TotalOf(sums);
  }
};

ffi::Error PrefillAttentionImpl(ffi::ThreadPool pool, IsInPairs in_pairs, Bf16Buffer q, Bf16Buffer k, Bf16Buffer v,
                                Bf16Buffer ring_k, Bf16Buffer ring_v, ffi::Buffer<ffi::S32> positions,
                                ffi::Result<Bf16Buffer> out) {
  const auto sizes = q.dimensions();
  const int64_t rows = sizes[0], steps = sizes[1], heads = sizes[2], size = sizes[3], window = ring_k.dimensions()[1];
  auto* const to = static_cast<uint16_t*>(out->untyped_data());
  const auto with = [&](auto kernel) {
    using K = decltype(kernel);
    const auto queries = Prepare<K, 0>(pool, Bf16Of(q), rows * steps, heads * size);
    for (int64_t b = 0; b < rows; ++b) {
      const int32_t* const at = positions.typed_data() + b * steps;
      const int64_t tokens = std::find_if(at, at + steps, [](int32_t position) { return position < 0; }) - at;
      const int64_t first = b * steps, ring = b * window * size;
      std::fill(to + (first + tokens) * heads * size, to + (first + steps) * heads * size, 0);
      if (tokens == 0) continue;
      ChunkAttention<K>{queries.values + first * heads * size, Bf16Of(k) + first * size, Bf16Of(v) + first * size,
                        Bf16Of(ring_k) + ring, Bf16Of(ring_v) + ring, at[0], tokens, heads, size, window,
                        to + first * heads * size}
          .Run(pool);
    }
  };
  WithBf16Kernel(*in_pairs, with);
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
