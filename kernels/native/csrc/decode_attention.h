// Attention of a decode step: one query `[N, d]` per row to the filled part of the row's ring and to the token's own
// key, which is then written into the ring. N heads of queries share one head of keys and values; all are in bfloat16.
//
// A ring is `[W, d]`. There may be more rings than rows. Holds the call `decode_attention`.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "activations.h"
#include "buffers.h"
#include "dot_products.h"
#include "threads.h"
#include "vectors.h"

ROOST_TARGET_BEGIN
namespace {

// Multiplies scores by 1 / sqrt(d).
struct Scaled {
  float scale;

  template <int Outputs>
  ROOST_INLINE Floats Numbers(Floats sums, int64_t, int64_t, int64_t) const {
    return Times(sums, Splat(scale));
  }
};

// Keys and values of the `length` tokens that a row's ring holds.
struct Filled {
  const uint16_t* keys;
  const uint16_t* values;
  int64_t length;
};

constexpr int64_t kLead = 16384;  // bytes read between a cache line's prefetch and its use: a third of an L1 cache

// Keys and values in the order in which a thread reads them: a row's keys, its values, then those of the row after it.
class Reading {
 public:
  void Add(const Filled& ring, int64_t size) {
    parts_[count_++] = {ring.keys, ring.length * size * 2};
    parts_[count_++] = {ring.values, ring.length * size * 2};
  }

  // Returns the distance in bytes from `at` to the memory that is read `kLead` bytes later, or 0 if there is none.
  // `read` bytes are read before `at`.
  int64_t Ahead(const void* at, int64_t read) const {
    int64_t left = read + kLead;
    for (int i = 0; i < count_; ++i) {
      const Part& part = parts_[i];
      if (left < part.bytes) return reinterpret_cast<intptr_t>(part.begin) + left - reinterpret_cast<intptr_t>(at);
      left -= part.bytes;
    }
    return 0;
  }

 private:
  struct Part {
    const void* begin;
    int64_t bytes;
  };
  Part parts_[4];
  int count_ = 0;
};

// Adds the values of `count` tokens, times their weights, to the sums of `Heads` heads and 16 * `Parts` elements of
// each. The weights of two heads are `stride` apart.
template <int Heads, int Parts>
ROOST_INLINE void Mix(const float* weights, int64_t stride, const uint16_t* values, int64_t count, int64_t size,
                      int64_t ahead, float* sums) {
  Floats acc[Heads][Parts];
  ROOST_UNROLL
  for (int n = 0; n < Heads; ++n) {
    ROOST_UNROLL
    for (int c = 0; c < Parts; ++c) acc[n][c] = Load(sums + n * size + 16 * c);
  }
  for (int64_t w = 0; w < count; ++w, values += size) {
    Floats v[Parts];
    ROOST_UNROLL
    for (int c = 0; c < Parts; ++c) v[c] = Widen(values + 16 * c);
    ROOST_UNROLL
    for (int c = 0; c < Parts; c += 2) Prefetch(values + 16 * c, ahead);
    ROOST_UNROLL
    for (int n = 0; n < Heads; ++n) {
      const Floats p = Splat(weights[n * stride + w]);
      ROOST_UNROLL
      for (int c = 0; c < Parts; ++c) acc[n][c] = TimesPlus(p, v[c], acc[n][c]);
    }
  }
  ROOST_UNROLL
  for (int n = 0; n < Heads; ++n) {
    ROOST_UNROLL
    for (int c = 0; c < Parts; ++c) Store(sums + n * size + 16 * c, acc[n][c]);
  }
}

// Heads, and multiples of sixteen elements, whose sums leave registers for the values.
constexpr int64_t kMostHeads = 6;
constexpr int64_t kMixParts = kManyRegisters ? 4 : 1;

// Calls `Mix` for all elements of `heads` heads, at most `Heads`.
template <int Heads>
void MixHeads(int64_t heads, const float* weights, int64_t stride, const uint16_t* values, int64_t count, int64_t size,
              int64_t ahead, float* sums) {
  if constexpr (Heads > 1) {
    if (heads < Heads) return MixHeads<Heads - 1>(heads, weights, stride, values, count, size, ahead, sums);
  }
  int64_t e = 0;
  for (; e + 16 * kMixParts <= size; e += 16 * kMixParts) {
    Mix<Heads, kMixParts>(weights, stride, values + e, count, size, ahead, sums + e);
  }
  for (; e < size; e += 16) Mix<Heads, 1>(weights, stride, values + e, count, size, ahead, sums + e);
}

constexpr int64_t kMixBytes = 16384;  // bytes of values that stay in the L1 cache for all heads and elements

// A row's attention: N query heads and one head of keys and values. `K` computes products, as in dot_products.h.
template <typename K>
struct AttentionRow {
  const uint16_t* q;
  const uint16_t* key;  // the token's own
  const uint16_t* value;
  const Filled& ring;
  const Reading& reading;
  int64_t heads, size;
  float* out;

  void Attend() const {
    const int64_t filled = ring.length;
    const int64_t stride = (filled + 15) / 16 * 16;
    thread_local std::vector<float> scratch;
    Grow(scratch, heads * stride + 2 * heads);
    float* const scores = scratch.data();
    float* const own = scores + heads * stride;
    float* const totals = own + heads;
    Score(scores, stride);
    for (int64_t n = 0; n < heads; ++n) Weigh(q + n * size, scores + n * stride, filled, own + n, totals + n);
    MixValues(scores, stride, own);
    for (int64_t n = 0; n < heads; ++n) {
      for (float* at = out + n * size; at < out + (n + 1) * size; at += 16) {
        Store(at, Over(Widen(at), Splat(totals[n])));
      }
    }
  }

 private:
  Scaled ScaledProducts() const { return {1.0f / std::sqrt(static_cast<float>(size))}; }

  // Computes the scores of all heads.
  void Score(float* scores, int64_t stride) const {
    const auto ahead = [&](const uint16_t* at) { return reading.Ahead(at, 2 * (at - ring.keys)); };
    Product<K>(ring.keys, ring.length, q, heads, size, scores, stride, ScaledProducts(), ahead);
  }

  // Replaces a head's scores by weights, and computes the weight of the token's own key and the sum of all weights.
  void Weigh(const uint16_t* query, float* scores, int64_t filled, float* own, float* total) const {
    alignas(64) float lanes[16];
    const uint16_t* keys[16];
    const uint16_t* const queries[1] = {query};
    for (auto& k : keys) k = key;
    const Floats products = Tile<K, 16, 1, false>(keys, queries, size, 0);
    Store(lanes, ScaledProducts().template Numbers<16>(products, 0, 16, 0));
    Floats largest = Splat(lanes[0]);
    for (int64_t w = 0; w < filled; w += 16) {
      const Mask mask = LanesIn(0, filled - w);
      largest = Select(mask, Max(largest, LoadSome(mask, scores + w)), largest);
    }
    const Floats top = Splat(LargestOf(largest));
    Floats sums = Floats{};
    for (int64_t w = 0; w < filled; w += 16) {
      const Mask mask = LanesIn(0, filled - w);
      const Floats weights = Exp(Minus(LoadSome(mask, scores + w), top));
      sums = Select(mask, Plus(sums, weights), sums);
      StoreSome(scores + w, mask, weights);
    }
    *own = First(Exp(Minus(Splat(lanes[0]), top)));
    *total = *own + TotalOf(sums);
  }

  // Computes the weighted sums of values, a few tokens at a time.
  void MixValues(const float* weights, int64_t stride, const float* own) const {
    for (int64_t n = 0; n < heads; ++n) {
      for (int64_t e = 0; e < size; e += 16) {
        Store(out + n * size + e, Times(Splat(own[n]), Widen(value + e)));
      }
    }
    const int64_t passes = (heads + kMostHeads - 1) / kMostHeads, some = std::max<int64_t>(1, kMixBytes / (2 * size));
    for (int64_t w = 0; w < ring.length; w += some) {
      const uint16_t* const at = ring.values + w * size;
      const int64_t ahead = reading.Ahead(at, 2 * size * (ring.length + w));
      for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t n = heads * pass / passes, next = heads * (pass + 1) / passes;
        MixHeads<kMostHeads>(next - n, weights + n * stride + w, stride, at, std::min(some, ring.length - w), size,
                             ahead, out + n * size);
      }
    }
  }
};

// Attention of a decode step. The first rings are those of the rows.
struct DecodeAttention {
  const uint16_t* q;
  const uint16_t* k;
  const uint16_t* v;
  const int32_t* positions;
  uint16_t* ring_k;
  uint16_t* ring_v;
  int64_t rows, heads, size, window;
  float* out;

  template <typename K>
  void Run(ffi::ThreadPool& pool) const {
    ForEach(pool, rows, [&](int64_t b) {
      float* const to = out + b * heads * size;
      if (positions[b] < 0) {
        std::fill(to, to + heads * size, 0.0f);
        return;
      }
      const Filled ring = FilledOf(b);
      Reading reading;
      reading.Add(ring, size);
      if (b + 1 < rows) reading.Add(FilledOf(b + 1), size);
      AttentionRow<K>{q + b * heads * size, k + b * size, v + b * size, ring, reading, heads, size, to}.Attend();
      Write(b);
    });
  }

 private:
  // Returns the filled part of a row's ring.
  Filled FilledOf(int64_t b) const {
    const int64_t first = b * window * size, length = std::min<int64_t>(window, positions[b]);
    return {ring_k + first, ring_v + first, std::max<int64_t>(0, length)};
  }

  // Writes the token's key and value over those of the token `window` before it.
  void Write(int64_t b) const {
    const int64_t place = (b * window + positions[b] % window) * size;
    std::memcpy(ring_k + place, k + b * size, 2 * size);
    std::memcpy(ring_v + place, v + b * size, 2 * size);
  }
};

// Updates the rings in place: the last results have the memory of the last arguments.
ffi::Error DecodeAttentionImpl(ffi::ThreadPool pool, Bf16Buffer q, Bf16Buffer k, Bf16Buffer v,
                               ffi::Buffer<ffi::S32> positions, Bf16Buffer, Bf16Buffer,
                               ffi::ResultBuffer<ffi::F32> out, ffi::Result<Bf16Buffer> ring_k,
                               ffi::Result<Bf16Buffer> ring_v) {
  const auto sizes = q.dimensions();
  const DecodeAttention attention{Bf16Of(q),
                                  Bf16Of(k),
                                  Bf16Of(v),
                                  positions.typed_data(),
                                  static_cast<uint16_t*>(ring_k->untyped_data()),
                                  static_cast<uint16_t*>(ring_v->untyped_data()),
                                  sizes[0],
                                  sizes[1],
                                  sizes[2],
                                  ring_k->dimensions()[1],
                                  out->typed_data()};
  WithRowKernel([&](auto kernel) { attention.Run<decltype(kernel)>(pool); });
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
