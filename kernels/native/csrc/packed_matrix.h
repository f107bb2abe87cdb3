// Packed matrices, and the loops that multiply rows with them: y `[R, O]` is x `[R, I]` times a matrix `[O, I]` in int8
// or bfloat16.
//
// A packed matrix is `[O / 16, I / group, 16, group]`, as `pack` in packing.py makes it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"
#include "vectors.h"

ROOST_TARGET_BEGIN
namespace {

// A packed matrix consists of strips of sixteen outputs. A strip has one register for each group of inputs, which are
// four in int8 and two in bfloat16. A lane of the register is an output, and so is a lane of a sum. Inputs are added in
// the same order for any number of rows, so a row's bits do not depend on the other rows.

constexpr int64_t kStripOutputs = 16;
constexpr int64_t kGroupBytes = 64;
constexpr int64_t kBlockGroups = 128;  // groups of three strips that stay in the L1 cache while all rows pass

// Types of activations and of sums.
struct Int8Types {
  using X = int8_t;
  using Lanes = Ints;
};
struct Bf16Types {
  using X = uint16_t;
  using Lanes = Floats;
};

// Products by one operation, which adds those of a whole group of 32 bits.
template <typename Types>
struct GroupKernel {
  using X = typename Types::X;
  using Lanes = typename Types::Lanes;
  using W = Ints;
  static constexpr int64_t kGroup = 4 / sizeof(X);

  ROOST_INLINE static Lanes Zero() { return Lanes{}; }
  ROOST_INLINE static W Load(const uint8_t* w) { return LoadBits(w); }
  template <int Parts>
  ROOST_INLINE static void Add(Lanes (&sums)[Parts], const W (&w)[Parts], const X* x) {
    int32_t group;
    std::memcpy(&group, x, sizeof group);
    const Ints row = SplatInt(group);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) sums[p] = AddProducts(sums[p], w[p], row);
  }
};

// Products of int8, whose sums are too large; see `kExcess`.
using Int8Kernel = GroupKernel<Int8Types>;

// Products of bfloat16 by the instruction for pairs: twice as fast as `WideKernel` on AMD, half as fast on Intel.
using PairKernel = GroupKernel<Bf16Types>;

// Products of bfloat16 widened to float32, in which they are exact. Every processor computes them.
struct WideKernel {
  struct W {
    Floats even, odd;
  };
  using X = float;
  using Lanes = Floats;
  static constexpr int64_t kGroup = 2;

  ROOST_INLINE static Floats Zero() { return Floats{}; }
  ROOST_INLINE static W Load(const uint8_t* w) {
    const Ints pairs = LoadBits(w);
    return {WidenEven(pairs), WidenOdd(pairs)};
  }
  template <int Parts>
  ROOST_INLINE static void Add(Floats (&sums)[Parts], const W (&w)[Parts], const float* x) {
    const Floats even = Splat(x[0]), odd = Splat(x[1]);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) sums[p] = TimesPlus(even, w[p].even, sums[p]);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) sums[p] = TimesPlus(odd, w[p].odd, sums[p]);
  }
};

// Calls `call` with the kernel for bfloat16: `PairKernel` if `in_pairs`.
template <typename Call>
void WithBf16Kernel(bool in_pairs, const Call& call) {
  if constexpr (kPairs) {
    if (in_pairs) return call(PairKernel{});
  }
  call(WideKernel{});
}

// Adds the products of groups [begin, end) of `Parts` strips with `Rows` rows. The memory `ahead` bytes after the
// groups is prefetched into the cache of level `Level`; 0 means none.
template <typename K, int Level, int Parts, int Rows>
ROOST_INLINE void AddGroups(const uint8_t* const (&w)[Parts], const typename K::X* const (&x)[Rows], int64_t begin,
                            int64_t end, int64_t ahead, typename K::Lanes (&sums)[Rows][Parts]) {
  for (int64_t g = begin; g < end; ++g) {
    typename K::W weights[Parts];
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) {
      weights[p] = K::Load(w[p] + g * kGroupBytes);
      const char* const line = reinterpret_cast<const char*>(w[p] + g * kGroupBytes + ahead);
      if constexpr (Level == 1) _mm_prefetch(line, _MM_HINT_T0);
      if constexpr (Level == 2) _mm_prefetch(line, _MM_HINT_T1);
    }
    ROOST_UNROLL
    for (int r = 0; r < Rows; ++r) K::template Add<Parts>(sums[r], weights, x[r] + g * K::kGroup);
  }
}

// Computes `Parts` strips, at w[0] to w[Parts - 1], for all rows, and calls store(sums, r) with the sums of each row. A
// block of groups stays in the L1 cache for all rows, whose sums are in `kept` between blocks. Each pass over `Rows`
// rows prefetches a share of the next block into the L2 cache. The strip that is computed next is `next` bytes after
// each strip.
template <typename K, int Parts, int Rows, typename Store>
ROOST_INLINE void PackedStrips(const uint8_t* const (&w)[Parts], int64_t next, const typename K::X* x, int64_t rows,
                               int64_t inputs, const Store& store) {
  const int64_t groups = inputs / K::kGroup, blocks = rows <= Rows ? 1 : (groups + kBlockGroups - 1) / kBlockGroups;
  const int64_t block = (groups + blocks - 1) / blocks, passes = (rows + Rows - 1) / Rows;
  thread_local std::vector<Line> lines;
  if (blocks > 1) Grow(lines, (rows + Rows) * Parts);
  auto* const kept = reinterpret_cast<typename K::Lanes*>(lines.data());
  for (int64_t g = 0; g < groups; g += block) {
    const int64_t some = std::min(block, groups - g), share = (some + passes - 1) / passes;
    const bool is_last = g + some == groups;
    const int64_t next_block = is_last ? next - g * kGroupBytes : some * kGroupBytes;
    const uint8_t* at[Parts];
    for (int p = 0; p < Parts; ++p) at[p] = w[p] + g * kGroupBytes;
    for (int64_t r = 0; r < rows; r += Rows) {
      const typename K::X* taken[Rows];
      for (int i = 0; i < Rows; ++i) taken[i] = x + std::min(r + i, rows - 1) * inputs + g * K::kGroup;
      typename K::Lanes sums[Rows][Parts];
      ROOST_UNROLL
      for (int i = 0; i < Rows; ++i) {
        ROOST_UNROLL
        for (int p = 0; p < Parts; ++p) sums[i][p] = g == 0 ? K::Zero() : kept[(r + i) * Parts + p];
      }
      if (passes == 1) {
        constexpr int64_t kAheadGroups = std::max(16, 8 * Rows);
        const int64_t near = std::max<int64_t>(0, some - kAheadGroups);
        AddGroups<K, 1>(at, taken, 0, near, kAheadGroups * kGroupBytes, sums);
        AddGroups<K, 1>(at, taken, near, some, next - near * kGroupBytes, sums);
      } else {
        AddGroups<K, 2>(at, taken, 0, share, next_block + r / Rows * share * kGroupBytes, sums);
        AddGroups<K, 0>(at, taken, share, some, 0, sums);
      }
      ROOST_UNROLL
      for (int i = 0; i < Rows; ++i) {
        if (is_last) {
          if (r + i < rows) store(sums[i], r + i);
          continue;
        }
        ROOST_UNROLL
        for (int p = 0; p < Parts; ++p) kept[(r + i) * Parts + p] = sums[i][p];
      }
    }
  }
}

// A packed matrix, or columns of one: strips of `inputs` inputs that are `strip_bytes` apart.
template <typename K>
struct Strips {
  const uint8_t* begin;
  int64_t inputs;
  int64_t strip_bytes = inputs / K::kGroup * kGroupBytes;
};

// Computes and stores outputs [o, o + 16 * Parts) of all rows.
template <typename K, int Parts, int Rows, typename Y, typename Finish>
ROOST_INLINE void StoreStrips(const Strips<K>& w, int64_t o, const typename K::X* x, int64_t rows, Y* y,
                              int64_t outputs, const Finish& finish) {
  const uint8_t* strips[Parts];
  for (int p = 0; p < Parts; ++p) strips[p] = w.begin + (o / kStripOutputs + p) * w.strip_bytes;
  const auto store = [&](const typename K::Lanes(&sums)[Parts], int64_t r) {
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) {
      const int64_t from = o + p * kStripOutputs;
      Store(y + r * outputs + from, finish(sums[p], from, r));
    }
  };
  PackedStrips<K, Parts, Rows>(strips, Parts * w.strip_bytes, x, rows, w.inputs, store);
}

// Computes outputs [begin, end) of all rows, `Parts` strips and `Rows` rows at a time; both bounds are multiples of 16.
template <typename K, int Parts, int Rows, typename Y, typename Finish>
void PackedRange(const Strips<K>& w, int64_t begin, int64_t end, const typename K::X* x, int64_t rows, Y* y,
                 int64_t outputs, const Finish& finish) {
  int64_t o = begin;
  for (; o + Parts * kStripOutputs <= end; o += Parts * kStripOutputs) {
    StoreStrips<K, Parts, Rows>(w, o, x, rows, y, outputs, finish);
  }
  for (; o < end; o += kStripOutputs) StoreStrips<K, 1, Rows>(w, o, x, rows, y, outputs, finish);
}

// Computes outputs [begin, end) of all rows: `finish(sums, o, r)` of the sums for row r and outputs [o, o + 16).
template <typename K, typename Y, typename Finish>
void PackedProduct(const Strips<K>& w, int64_t begin, int64_t end, const typename K::X* x, int64_t rows, Y* y,
                   int64_t outputs, const Finish& finish) {
  if (rows == 1) return PackedRange<K, 4, 1>(w, begin, end, x, rows, y, outputs, finish);
  if constexpr (!kManyRegisters) return PackedRange<K, 1, 4>(w, begin, end, x, rows, y, outputs, finish);
  if (rows == 2) return PackedRange<K, 4, 2>(w, begin, end, x, rows, y, outputs, finish);
  if (rows <= 4) return PackedRange<K, 3, 4>(w, begin, end, x, rows, y, outputs, finish);
  PackedRange<K, 3, 8>(w, begin, end, x, rows, y, outputs, finish);
}

}  // namespace
ROOST_TARGET_END
