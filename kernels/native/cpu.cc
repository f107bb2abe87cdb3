// Products of a few rows with large matrices, and attention of one query per row, for x86 CPUs with AVX-512 VNNI and
// BF16. Decoding reads every weight once per step; these kernels read them at memory bandwidth. They also compute the
// int8 products of prefill chunks. XLA runs them as custom calls. A row's result depends neither on the other rows nor
// on the number of threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ffi = xla::ffi;

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma")
#endif
#define ROOST_INLINE inline __attribute__((always_inline))
#define ROOST_UNROLL _Pragma("GCC unroll 16")  // early enough for an array of registers to become registers

namespace {

// ---- threads

// Consecutive items, of which one thread takes the first and others the last.
class alignas(64) Range {
 public:
  void Set(uint32_t begin, uint32_t end) { ends_.store(uint64_t{begin} << 32 | end, std::memory_order_relaxed); }
  int64_t TakeFirst() { return Take(uint64_t{1} << 32, 0); }
  int64_t TakeLast() { return Take(0, 1); }

 private:
  // Returns an item after moving the ends, or -1 if there is none.
  int64_t Take(uint64_t begins, uint32_t ends) {
    uint64_t old = ends_.load(std::memory_order_relaxed);
    while (old >> 32 < static_cast<uint32_t>(old)) {
      if (ends_.compare_exchange_weak(old, old + begins - ends, std::memory_order_relaxed)) {
        return begins ? old >> 32 : static_cast<uint32_t>(old) - 1;
      }
    }
    return -1;
  }

  std::atomic<uint64_t> ends_{0};  // the begin in the upper half
};

// Items of one call, split into a range for each thread. A thread whose range is empty takes from the others' ends.
struct Shared {
  Shared(int64_t count, int64_t threads) : ranges(threads) {
    for (int64_t t = 0; t < threads; ++t) ranges[t].Set(count * t / threads, count * (t + 1) / threads);
  }

  int64_t Take(int64_t thread) {
    int64_t item = ranges[thread].TakeFirst();
    for (size_t other = 1; item < 0 && other < ranges.size(); ++other) {
      item = ranges[(thread + other) % ranges.size()].TakeLast();
    }
    return item;
  }

  std::vector<Range> ranges;
  std::atomic<int64_t> done{0};
};

// Calls work(i) for i in [0, count), on the pool's threads and on this one. A thread's items are mostly consecutive. The
// caller waits only for items that a thread has started, so busy pool threads cost speed but cannot block it.
template <typename Work>
void ForEach(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(pool.num_threads(), count));
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  auto shared = std::make_shared<Shared>(count, threads);
  auto take = [shared, &work](int64_t thread) {
    for (int64_t i = shared->Take(thread); i >= 0; i = shared->Take(thread)) {
      work(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t t = 1; t < threads; ++t) {
    pool.Schedule([take, t] { take(t); });  // a late thread finds no item and never touches `work`
  }
  take(0);
  for (int spins = 0; shared->done.load(std::memory_order_acquire) < count; ++spins) {
    spins < 4096 ? _mm_pause() : std::this_thread::yield();
  }
}

struct alignas(64) Line {
  uint8_t bytes[64];
};

// Grows a scratch buffer that is reused between calls to at least `count` elements.
template <typename T>
void Grow(std::vector<T>& scratch, int64_t count) {
  if (static_cast<int64_t>(scratch.size()) < count) scratch.resize(count);
}

// ---- horizontal sums of sixteen registers, all added in the same order

ROOST_INLINE __m512 Sum(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
ROOST_INLINE __m512i Sum(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
ROOST_INLINE __m512i Bits(__m512 a) { return _mm512_castps_si512(a); }
ROOST_INLINE __m512i Bits(__m512i a) { return a; }
ROOST_INLINE void Set(__m512& a, __m512i bits) { a = _mm512_castsi512_ps(bits); }
ROOST_INLINE void Set(__m512i& a, __m512i bits) { a = bits; }

template <typename Lanes>
ROOST_INLINE Lanes Add2(__m512i low, __m512i high) {
  Lanes a, b;
  Set(a, low);
  Set(b, high);
  return Sum(a, b);
}

// Lane i of the result is the sum of the lanes of acc[i].
template <typename Lanes>
ROOST_INLINE Lanes SumLanes(const Lanes (&acc)[16]) {
  Lanes pairs[8], quads[4];
  ROOST_UNROLL
  for (int i = 0; i < 8; ++i) {
    const __m512i a = Bits(acc[2 * i]), b = Bits(acc[2 * i + 1]);
    pairs[i] = Add2<Lanes>(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
  ROOST_UNROLL
  for (int i = 0; i < 4; ++i) {
    const __m512i a = Bits(pairs[2 * i]), b = Bits(pairs[2 * i + 1]);
    quads[i] = Add2<Lanes>(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  Lanes halves[2];
  ROOST_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512i a = Bits(quads[2 * i]), b = Bits(quads[2 * i + 1]);
    halves[i] = Add2<Lanes>(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  const __m512i a = Bits(halves[0]), b = Bits(halves[1]);
  return Add2<Lanes>(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// ---- attention's products: sixteen dot products at a time, of `Outputs` keys with `Rows` queries

// Inline assembly, because GCC's intrinsics move every sum to another register and back.
ROOST_INLINE __m512 AddBf16(__m512 sum, __m512i w, __m512i x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}

struct Bf16 {
  using Element = uint16_t;
  using Lanes = __m512;
  using Sum = float;
  static constexpr int64_t kStep = 32;

  ROOST_INLINE static __m512i Weights(const uint16_t* p) { return _mm512_loadu_si512(p); }
  ROOST_INLINE static __m512i Weights(const uint16_t* p, int64_t count) { return Row(p, count); }
  ROOST_INLINE static __m512i Row(const uint16_t* p) { return _mm512_loadu_si512(p); }
  ROOST_INLINE static __m512i Row(const uint16_t* p, int64_t count) {
    return _mm512_maskz_loadu_epi16((uint32_t{1} << count) - 1, p);
  }
  ROOST_INLINE static __m512 Zero() { return _mm512_setzero_ps(); }
  ROOST_INLINE static __m512 MultiplyAdd(__m512 sum, __m512i w, __m512i x) { return AddBf16(sum, w, x); }
};

// Prefetches what lies `ahead` bytes behind p.
ROOST_INLINE void Prefetch(const void* p, int64_t ahead) {
  _mm_prefetch(static_cast<const char*>(p) + ahead, _MM_HINT_T0);
}

// Lane r * Outputs + o of the result is row r of x times row o of the matrix. `Fetch` prefetches `ahead` bytes behind the
// matrix.
template <typename K, int Outputs, int Rows, bool Fetch>
ROOST_INLINE typename K::Lanes Tile(const typename K::Element* const (&w)[Outputs],
                                    const typename K::Element* const (&x)[Rows], int64_t inputs, int64_t ahead) {
  static_assert(Outputs * Rows == 16);
  typename K::Lanes acc[16];
  ROOST_UNROLL
  for (auto& sum : acc) sum = K::Zero();
  int64_t i = 0;
  for (; i + K::kStep <= inputs; i += K::kStep) {
    __m512i row[Rows];
    ROOST_UNROLL
    for (int r = 0; r < Rows; ++r) row[r] = K::Row(x[r] + i);
    ROOST_UNROLL
    for (int o = 0; o < Outputs; ++o) {
      const __m512i weights = K::Weights(w[o] + i);
      if constexpr (Fetch) Prefetch(w[o] + i, ahead);
      ROOST_UNROLL
      for (int r = 0; r < Rows; ++r) acc[r * Outputs + o] = K::MultiplyAdd(acc[r * Outputs + o], weights, row[r]);
    }
  }
  if (const int64_t rest = inputs - i; rest > 0) {
    ROOST_UNROLL
    for (int o = 0; o < Outputs; ++o) {
      const __m512i weights = K::Weights(w[o] + i, rest);
      ROOST_UNROLL
      for (int r = 0; r < Rows; ++r) {
        acc[r * Outputs + o] = K::MultiplyAdd(acc[r * Outputs + o], weights, K::Row(x[r] + i, rest));
      }
    }
  }
  return SumLanes(acc);
}

// Joins four adjacent tiles, of four outputs and four rows each, into four rows of sixteen outputs.
ROOST_INLINE void JoinRows(const __m512 (&tiles)[4], __m512 (&rows)[4]) {
  const __m512 a = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0x88), b = _mm512_shuffle_f32x4(tiles[2], tiles[3], 0x88);
  const __m512 c = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0xdd), d = _mm512_shuffle_f32x4(tiles[2], tiles[3], 0xdd);
  rows[0] = _mm512_shuffle_f32x4(a, b, 0x88);
  rows[1] = _mm512_shuffle_f32x4(c, d, 0x88);
  rows[2] = _mm512_shuffle_f32x4(a, b, 0xdd);
  rows[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

// Computes sixteen outputs, or fewer at the end, of up to `Rows` rows into `Rows` registers.
template <typename K, int Rows, bool Fetch, typename Finish>
ROOST_INLINE void Strip(const typename K::Element* w, int64_t o, int64_t end, const typename K::Element* x, int64_t r,
                        int64_t last, int64_t inputs, int64_t ahead, const Finish& finish, __m512 (&out)[Rows]) {
  constexpr int kOutputs = 16 / Rows;
  const typename K::Element* taken[Rows];
  for (int i = 0; i < Rows; ++i) taken[i] = x + std::min(r + i, last) * inputs;
  __m512 tiles[Rows];
  ROOST_UNROLL
  for (int t = 0; t < Rows; ++t) {
    const int64_t from = o + t * kOutputs;
    const typename K::Element* weights[kOutputs];
    for (int i = 0; i < kOutputs; ++i) weights[i] = w + std::min(from + i, end - 1) * inputs;
    tiles[t] = finish.template Numbers<kOutputs>(Tile<K, kOutputs, Rows, Fetch>(weights, taken, inputs, ahead),
                                                 std::min(from, end - 1), std::min<int64_t>(kOutputs, std::max<int64_t>(end - from, 1)), r);
  }
  if constexpr (Rows == 1) out[0] = tiles[0];
  if constexpr (Rows == 2) {
    out[0] = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0x44);
    out[1] = _mm512_shuffle_f32x4(tiles[0], tiles[1], 0xee);
  }
  if constexpr (Rows == 4) JoinRows(tiles, out);
}

// Computes sixteen outputs of rows [r, r + Rows) of x, one cache line of a row of y each.
template <typename K, int Rows, typename Finish>
ROOST_INLINE void StoreStrip(const typename K::Element* w, int64_t o, int64_t end, const typename K::Element* x,
                             int64_t r, int64_t rows, int64_t inputs, int64_t ahead, float* y, int64_t stride,
                             const Finish& finish) {
  const __mmask16 mask = (1u << std::min<int64_t>(16, end - o)) - 1;
  __m512 out[Rows];
  if (r == 0) {
    Strip<K, Rows, true>(w, o, end, x, r, rows - 1, inputs, ahead, finish, out);
  } else {
    Strip<K, Rows, false>(w, o, end, x, r, rows - 1, inputs, ahead, finish, out);
  }
  for (int i = 0; i < Rows && r + i < rows; ++i) _mm512_mask_storeu_ps(y + (r + i) * stride + o, mask, out[i]);
}

// Computes y for rows [0, end) of the matrix and all rows of x, a few at a time. What lies ahead(p) bytes behind a place
// p of the matrix is prefetched when that place is read.
template <typename K, typename Finish, typename Ahead>
void Product(const typename K::Element* w, int64_t end, const typename K::Element* x, int64_t rows, int64_t inputs,
             float* y, int64_t stride, const Finish& finish, const Ahead& ahead) {
  for (int64_t o = 0; o < end; o += 16) {
    const int64_t distance = ahead(w + o * inputs);
    for (int64_t r = 0; r < rows; r += 4) {
      if (rows - r == 1) {
        StoreStrip<K, 1>(w, o, end, x, r, rows, inputs, distance, y, stride, finish);
      } else if (rows - r == 2) {
        StoreStrip<K, 2>(w, o, end, x, r, rows, inputs, distance, y, stride, finish);
      } else {
        StoreStrip<K, 4>(w, o, end, x, r, rows, inputs, distance, y, stride, finish);
      }
    }
  }
}

ROOST_INLINE void Store(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
ROOST_INLINE void Store(uint16_t* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }

// ---- products with packed matrices

// A packed matrix consists of strips of sixteen outputs. A strip has a register for each group of inputs: four in int8
// or two in bfloat16 of each output, so that a lane of a sum is an output. Inputs are added in order, whatever the number
// of rows, so a row's bits do not depend on the other rows.

constexpr int64_t kStripOutputs = 16;
constexpr int64_t kGroupBytes = 64;
constexpr int64_t kBlockGroups = 128;  // groups of three strips that stay in the L1 cache while all rows pass

// Sums of products of four int8 each; w is unsigned.
struct Int8Sums {
  using Lanes = __m512i;
  ROOST_INLINE static Lanes Add(Lanes sum, __m512i w, __m512i x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
};

// Sums of products of two bfloat16 each.
struct Bf16Sums {
  using Lanes = __m512;
  ROOST_INLINE static Lanes Add(Lanes sum, __m512i w, __m512i x) { return AddBf16(sum, w, x); }
};

// Products by an instruction that adds those of a whole group of 32 bits.
template <typename Element, typename Sums>
struct GroupKernel {
  using X = Element;
  using Lanes = typename Sums::Lanes;
  using W = __m512i;
  static constexpr int64_t kGroup = 4 / sizeof(Element);

  ROOST_INLINE static Lanes Zero() { return Lanes{}; }
  ROOST_INLINE static W Load(const uint8_t* w) { return _mm512_loadu_si512(w); }
  template <int Parts>
  ROOST_INLINE static void Add(Lanes (&sums)[Parts], const W (&w)[Parts], const X* x) {
    int32_t group;
    std::memcpy(&group, x, sizeof group);
    const __m512i row = _mm512_set1_epi32(group);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) sums[p] = Sums::Add(sums[p], w[p], row);
  }
};

// Products of int8: sums of x times (w + 128), because the instruction takes one unsigned operand.
using Int8Kernel = GroupKernel<int8_t, Int8Sums>;

// Products of bfloat16 by the instruction for pairs: twice as fast as `WideKernel` on AMD, half as fast on Intel.
using PairKernel = GroupKernel<uint16_t, Bf16Sums>;

// Products of bfloat16 widened to float32, in which they are exact.
struct WideKernel {
  struct W {
    __m512 even, odd;
  };
  using X = float;
  using Lanes = __m512;
  static constexpr int64_t kGroup = 2;

  ROOST_INLINE static __m512 Zero() { return _mm512_setzero_ps(); }
  ROOST_INLINE static W Load(const uint8_t* w) {
    const __m512i pairs = _mm512_loadu_si512(w);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000)))};
  }
  template <int Parts>
  ROOST_INLINE static void Add(__m512 (&sums)[Parts], const W (&w)[Parts], const float* x) {
    const __m512 even = _mm512_set1_ps(x[0]), odd = _mm512_set1_ps(x[1]);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) sums[p] = _mm512_fmadd_ps(even, w[p].even, sums[p]);
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) sums[p] = _mm512_fmadd_ps(odd, w[p].odd, sums[p]);
  }
};

// Adds the products of some groups of `Parts` strips with `Rows` rows, while cache lines `ahead` bytes behind the groups
// are prefetched into the cache of level `Level`; 0 means none.
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

// Computes `Parts` strips, at w[0] to w[Parts - 1], for all rows, and calls store(sums, r) with those of each row. A block
// of groups stays in the L1 cache for all rows, whose sums wait in `kept` between blocks. Meanwhile the next block comes
// into the L2 cache, a share with each pass; `next` bytes behind each strip is the one that is computed after it.
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

// Computes outputs [o, o + 16 * Parts) of all rows.
template <typename K, int Parts, int Rows, typename Y, typename Finish>
ROOST_INLINE void StoreStrips(const Strips<K>& w, int64_t o, const typename K::X* x, int64_t rows, Y* y, int64_t outputs,
                              const Finish& finish) {
  const uint8_t* strips[Parts];
  for (int p = 0; p < Parts; ++p) strips[p] = w.begin + (o / kStripOutputs + p) * w.strip_bytes;
  PackedStrips<K, Parts, Rows>(strips, Parts * w.strip_bytes, x, rows, w.inputs, [&](const typename K::Lanes(&sums)[Parts], int64_t r) {
    ROOST_UNROLL
    for (int p = 0; p < Parts; ++p) {
      const int64_t from = o + p * kStripOutputs;
      Store(y + r * outputs + from, finish(sums[p], from, r));
    }
  });
}

// Computes outputs [begin, end) of all rows; both are multiples of a strip's outputs.
template <typename K, int Parts, int Rows, typename Y, typename Finish>
void PackedRange(const Strips<K>& w, int64_t begin, int64_t end, const typename K::X* x, int64_t rows, Y* y,
                 int64_t outputs, const Finish& finish) {
  int64_t o = begin;
  for (; o + Parts * kStripOutputs <= end; o += Parts * kStripOutputs) {
    StoreStrips<K, Parts, Rows>(w, o, x, rows, y, outputs, finish);
  }
  for (; o < end; o += kStripOutputs) StoreStrips<K, 1, Rows>(w, o, x, rows, y, outputs, finish);
}

template <typename K, typename Y, typename Finish>
void PackedProduct(const Strips<K>& w, int64_t begin, int64_t end, const typename K::X* x, int64_t rows, Y* y,
                   int64_t outputs, const Finish& finish) {
  if (rows == 1) return PackedRange<K, 4, 1>(w, begin, end, x, rows, y, outputs, finish);
  if (rows == 2) return PackedRange<K, 4, 2>(w, begin, end, x, rows, y, outputs, finish);
  if (rows <= 4) return PackedRange<K, 3, 4>(w, begin, end, x, rows, y, outputs, finish);
  PackedRange<K, 3, 8>(w, begin, end, x, rows, y, outputs, finish);
}

// ---- quantisation to int8

ROOST_INLINE __m512 Widen(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
ROOST_INLINE __m512 Widen(const float* p) { return _mm512_loadu_ps(p); }
ROOST_INLINE float WidenOne(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
ROOST_INLINE float WidenOne(float x) { return x; }

// Bits of infinity. Without the sign, bits of floats are ordered as the floats are, with NaNs last.
constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kSizeBits = 0x7fffffff;

// Returns the bits of a row's largest absolute value, a NaN if there is one: maxima of floats would lose it.
template <typename X>
ROOST_INLINE int32_t LargestBits(const X* x, int64_t inputs) {
  const __m512i size = _mm512_set1_epi32(kSizeBits);
  __m512i lanes = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 16 <= inputs; i += 16) {
    lanes = _mm512_max_epi32(lanes, _mm512_and_si512(_mm512_castps_si512(Widen(x + i)), size));
  }
  int32_t largest = _mm512_reduce_max_epi32(lanes);
  for (; i < inputs; ++i) {
    const float value = WidenOne(x[i]);
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    largest = std::max(largest, bits & kSizeBits);
  }
  return largest;
}

// Quantises a row as `quantize_rows` in engine/model/quantization.py does, bit for bit.
// `offset` is 128 times the sum of the row: the excess of `Int8Kernel`.
// A row with a NaN or an infinity gets the scale NaN, so that all its products are NaN.
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
  __m512i sums = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 16 <= inputs; i += 16) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(Widen(x + i), _mm512_set1_ps(factor)));
    sums = _mm512_add_epi32(sums, rounded);
    _mm_storeu_si128((__m128i*)(out + i), _mm512_cvtepi32_epi8(rounded));
  }
  int32_t sum = _mm512_reduce_add_epi32(sums);
  for (; i < inputs; ++i) {
    out[i] = static_cast<int8_t>(std::nearbyint(WidenOne(x[i]) * factor));
    sum += out[i];
  }
  *scale = largest * static_cast<float>(1.0 / 127.0);
  *offset = 128 * sum;
}

// ---- functions of floats

// Returns e^x for x <= 0, to two units in the last place, and NaN for NaN.
// Below the bound, where the result rounds to 0, the polynomial could overflow. The maximum returns NaN for NaN.
ROOST_INLINE __m512 Exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-1024.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  ROOST_UNROLL
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  }
  return _mm512_scalef_ps(p, n);
}

// Returns 1 / (1 + e^-x).
ROOST_INLINE __m512 Sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), tail = Exp(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
  const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_div_ps(_mm512_mask_mov_ps(one, is_negative, tail), _mm512_add_ps(one, tail));
}

// Returns 1 - e^x for x <= 0, accurate near 0, given e^x.
ROOST_INLINE __m512 OneMinusExp(__m512 x, __m512 exp) {
  __m512 p = _mm512_set1_ps(1.0f / 362880);
  ROOST_UNROLL
  for (const float c : {1.0f / 40320, 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) {
    p = _mm512_fmadd_ps(p, x, _mm512_set1_ps(c));
  }
  const __m512 near = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), p);
  const __mmask16 is_far = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-0.5f), _CMP_LT_OQ);
  return _mm512_mask_sub_ps(near, is_far, _mm512_set1_ps(1.0f), exp);
}

// Returns gelu(x) in the approximation by tanh: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)).
ROOST_INLINE __m512 Gelu(__m512 x) {
  const __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
  const __m512 inner = _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cubed, x);
  return _mm512_mul_ps(x, Sigmoid(_mm512_mul_ps(_mm512_set1_ps(1.5957691216057308f), inner)));
}

// Returns tanh(x), accurate near 0, and NaN for NaN.
ROOST_INLINE __m512 Tanh(__m512 x) {
  const __m512 minus = _mm512_set1_ps(-0.0f), tail = _mm512_mul_ps(_mm512_set1_ps(-2.0f), _mm512_abs_ps(x));
  const __m512 exp = Exp(tail);
  const __m512 size = _mm512_div_ps(OneMinusExp(tail, exp), _mm512_add_ps(_mm512_set1_ps(1.0f), exp));
  return _mm512_or_ps(size, _mm512_and_ps(minus, x));
}

// ---- the calls

// Returns the outputs in a piece of a matrix: at least 64 KiB, so that threads rarely contend for the next one, and whole
// triples of strips.
int64_t PieceOutputs(int64_t bytes_per_output) {
  constexpr int64_t kTriple = 3 * kStripOutputs;
  return std::max<int64_t>(1, (65536 / bytes_per_output + kTriple - 1) / kTriple) * kTriple;
}

template <typename Piece>
void InPieces(ffi::ThreadPool& pool, int64_t outputs, int64_t bytes_per_output, const Piece& piece) {
  const int64_t size = PieceOutputs(bytes_per_output);
  ForEach(pool, (outputs + size - 1) / size,
          [&](int64_t i) { piece(i * size, std::min(outputs, (i + 1) * size)); });
}

// Returns null for an empty array, which means no bias.
const float* BiasOf(const ffi::Buffer<ffi::F32>& bias) {
  return bias.element_count() == 0 ? nullptr : bias.typed_data();
}

ROOST_INLINE __m512 AddBias(__m512 sums, const float* bias, int64_t o) {
  return bias == nullptr ? sums : _mm512_add_ps(sums, _mm512_loadu_ps(bias + o));
}

struct FinishInt8 {
  const float* row_scales;
  const int32_t* offsets;
  const float* scales;
  const float* bias;

  // Returns sixteen outputs from `o` on of row `r`.
  ROOST_INLINE __m512 operator()(__m512i sums, int64_t o, int64_t r) const {
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(row_scales[r]), _mm512_loadu_ps(scales + o));
    const __m512i exact = _mm512_sub_epi32(sums, _mm512_set1_epi32(offsets[r]));
    // Bounded as in `quantized_dot` in engine/model/quantization.py. The maximum returns its second operand if that is
    // NaN, and keeps product and sum apart, which as one instruction would round once where XLA rounds twice.
    const __m512 lowest = _mm512_set1_ps(std::numeric_limits<float>::lowest());
    return AddBias(_mm512_max_ps(lowest, _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale)), bias, o);
  }
};

struct FinishBf16 {
  const float* bias;

  ROOST_INLINE __m512 operator()(__m512 sums, int64_t o, int64_t) const { return AddBias(sums, bias, o); }
};

// Calls with a pointer to an array in float32 or bfloat16.
template <typename Call>
void WithType(const ffi::AnyBuffer& x, const Call& call) {
  if (x.element_type() == ffi::BF16) return call(static_cast<uint16_t*>(x.untyped_data()));
  call(static_cast<float*>(x.untyped_data()));
}

template <typename Call>
void WithTypes(const ffi::AnyBuffer& x, const ffi::AnyBuffer& y, const Call& call) {
  WithType(x, [&](auto* from) { WithType(y, [&](auto* to) { call(from, to); }); });
}

// Calls work(r) for every row, some at a time on each thread: as many as there are for it, within bounds.
template <typename Work>
void ForEachRow(ffi::ThreadPool& pool, int64_t rows, int64_t inputs, const Work& work) {
  constexpr int64_t kLeast = 8192, kMost = 32768;  // elements; fewer are done before another thread wakes
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t some = std::clamp((rows + threads - 1) / threads, std::max(int64_t{1}, kLeast / inputs),
                                  std::max(int64_t{1}, kMost / inputs));
  ForEach(pool, (rows + some - 1) / some, [=, &work](int64_t i) {
    for (int64_t r = i * some; r < std::min(rows, (i + 1) * some); ++r) work(r);
  });
}

// Rows of activations as a kernel takes them. `Which` tells buffers apart that one call needs at the same time.
template <typename K>
struct Rows {
  const typename K::X* values;
  const float* scales = nullptr;
  const int32_t* offsets = nullptr;
};

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

// A packed matrix with what its products need.
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

template <typename K, int Which, typename X, typename Y>
void Multiply(ffi::ThreadPool& pool, const X* x, int64_t rows, int64_t inputs, const PackedMatrix& w, Y* y) {
  const Rows<K> prepared = Prepare<K, Which>(pool, x, rows, inputs);
  const auto finish = FinishOf(prepared, w);
  InPieces(pool, w.outputs, inputs * 4 / K::kGroup, [=](int64_t begin, int64_t end) {
    PackedProduct<K>(Strips<K>{w.values, inputs}, begin, end, prepared.values, rows, y, w.outputs, finish);
  });
}

// Computes gelu(gate) * up for strips [begin, end) of the gate; the other half of the matrix is up.
template <typename K, int Count, typename Y, typename Finish>
void GatedStrips(const PackedMatrix& w, int64_t begin, int64_t end, const typename K::X* x, int64_t rows, int64_t inputs,
                 Y* y, const Finish& finish) {
  const int64_t outputs = w.outputs / 2, strip_bytes = inputs / K::kGroup * kGroupBytes;
  for (int64_t o = begin; o < end; o += kStripOutputs) {
    const uint8_t* const gate = w.values + o / kStripOutputs * strip_bytes;
    const uint8_t* const strips[2] = {gate, gate + outputs / kStripOutputs * strip_bytes};
    PackedStrips<K, 2, Count>(strips, strip_bytes, x, rows, inputs, [&](const typename K::Lanes(&sums)[2], int64_t r) {
      const __m512 up = finish(sums[1], outputs + o, r);
      Store(y + r * outputs + o, _mm512_mul_ps(Gelu(finish(sums[0], o, r)), up));
    });
  }
}

// Computes down(gelu(gate(x)) * up(x)); the product of gate and up is rounded to the type of x.
template <typename K, typename X>
void GatedMlp(ffi::ThreadPool& pool, const X* x, int64_t rows, int64_t inputs, const PackedMatrix& gate_up,
              const PackedMatrix& down, X* y) {
  const int64_t width = gate_up.outputs / 2;
  thread_local std::vector<X> scratch;
  Grow(scratch, rows * width);
  X* const inner = scratch.data();
  const Rows<K> prepared = Prepare<K, 0>(pool, x, rows, inputs);
  const auto finish = FinishOf(prepared, gate_up);
  InPieces(pool, width, 2 * inputs * 4 / K::kGroup, [=](int64_t begin, int64_t end) {
    const auto* const values = prepared.values;
    if (rows == 1) return GatedStrips<K, 1>(gate_up, begin, end, values, rows, inputs, inner, finish);
    if (rows <= 4) return GatedStrips<K, 4>(gate_up, begin, end, values, rows, inputs, inner, finish);
    GatedStrips<K, 8>(gate_up, begin, end, values, rows, inputs, inner, finish);
  });
  Multiply<K, 1>(pool, inner, rows, width, down, y);
}

// ---- logits and their argmax

// Converts between bits of floats and integers in their order: -NaN, -inf, ..., -0, 0, ..., inf, NaN.
ROOST_INLINE int32_t InOrder(int32_t bits) { return bits ^ ((bits >> 31) & kSizeBits); }
ROOST_INLINE __m512i InOrder(__m512i bits) {
  return _mm512_xor_si512(bits, _mm512_and_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(kSizeBits)));
}

// A largest logit, as an integer in order, and the lowest of its tokens.
struct Best {
  int32_t key, token;
};

// A model's output layer: logits are cap * tanh(products / cap), or the products if the cap is 0.
template <typename K>
struct OutputLayer {
  Rows<K> x;
  int64_t rows, inputs;
  PackedMatrix w;
  float cap;

  int64_t BytesPerOutput() const { return inputs * 4 / K::kGroup; }

  // Computes products [begin, end) of all rows; y is where product 0 of the first row would be, and rows are `stride` apart.
  void Products(int64_t begin, int64_t end, float* y, int64_t stride) const {
    PackedProduct<K>(Strips<K>{w.values, inputs}, begin, end, x.values, rows, y, stride, FinishOf(x, w));
  }

  // Returns the logits of products.
  ROOST_INLINE __m512 Logits(__m512 products) const {
    if (cap == 0.0f) return products;
    const __m512 factor = _mm512_set1_ps(cap);
    return _mm512_mul_ps(factor, Tanh(_mm512_div_ps(products, factor)));
  }

  // Returns the best of a row's logits [begin, end), given their products; both are multiples of 16.
  Best BestOf(const float* products, int64_t begin, int64_t end) const {
    const __m512 bound = _mm512_set1_ps(Bound(products, begin, end));
    __m512i keys = _mm512_set1_epi32(std::numeric_limits<int32_t>::min()), at = _mm512_set1_epi32(begin);
    for (int64_t o = begin; o < end; o += 16) {
      const __m512 some = Widen(products + o);
      if (_mm512_cmp_ps_mask(some, bound, _CMP_NLT_UQ) == 0) continue;
      const __m512i others = InOrder(Bits(Logits(some)));
      const __mmask16 is_larger = _mm512_cmpgt_epi32_mask(others, keys);
      keys = _mm512_mask_mov_epi32(keys, is_larger, others);
      at = _mm512_mask_mov_epi32(at, is_larger, _mm512_set1_epi32(o));
    }
    const int32_t largest = _mm512_reduce_max_epi32(keys);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 is_largest = _mm512_cmpeq_epi32_mask(keys, _mm512_set1_epi32(largest));
    return {largest, _mm512_mask_reduce_min_epi32(is_largest, _mm512_add_epi32(at, lanes))};
  }

 private:
  // Returns a bound below which no product has the largest logit. Where the curve is steep, a thousandth of the cap makes
  // a hundred times the difference that rounding makes. Where it is flat, many logits may be equal.
  float Bound(const float* products, int64_t begin, int64_t end) const {
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t o = begin; o < end; o += 16) largest = _mm512_max_ps(Widen(products + o), largest);  // without NaNs
    const float top = _mm512_reduce_max_ps(largest);
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
      for (float* at = y + r * outputs + begin; at < y + r * outputs + end; at += 16) Store(at, layer.Logits(Widen(at)));
    }
  });
}

// Computes the largest logit of each row and the lowest of its tokens, a piece at a time, whose products stay in the cache.
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
}

using Bf16Buffer = ffi::Buffer<ffi::BF16>;
const uint8_t* BytesOf(const Bf16Buffer& x) { return reinterpret_cast<const uint8_t*>(x.untyped_data()); }
const uint16_t* Bf16Of(const Bf16Buffer& x) { return reinterpret_cast<const uint16_t*>(x.untyped_data()); }

ffi::Error Int8ProductImpl(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                           ffi::Buffer<ffi::F32> scale, ffi::Buffer<ffi::F32> bias, ffi::Result<ffi::AnyBuffer> y) {
  const PackedMatrix matrix{w.typed_data(), scale.typed_data(), BiasOf(bias), y->dimensions()[1]};
  WithTypes(x, *y, [&](const auto* from, auto* to) {
    Multiply<Int8Kernel, 0>(pool, from, x.dimensions()[0], x.dimensions()[1], matrix, to);
  });
  return ffi::Error::Success();
}

ffi::Error Bf16ProductImpl(ffi::ThreadPool pool, bool in_pairs, ffi::Buffer<ffi::BF16> x, ffi::Buffer<ffi::BF16> w,
                           ffi::Buffer<ffi::F32> bias, ffi::Result<ffi::AnyBuffer> y) {
  const PackedMatrix matrix{BytesOf(w), nullptr, BiasOf(bias), y->dimensions()[1]};
  WithType(*y, [&](auto* to) {
    const auto with = [&](auto kernel) {
      Multiply<decltype(kernel), 0>(pool, Bf16Of(x), x.dimensions()[0], x.dimensions()[1], matrix, to);
    };
    in_pairs ? with(PairKernel{}) : with(WideKernel{});
  });
  return ffi::Error::Success();
}

// Calls with an `OutputLayer` of int8.
template <typename Call>
ffi::Error WithInt8Layer(ffi::ThreadPool& pool, float cap, const ffi::AnyBuffer& x, const ffi::Buffer<ffi::U8>& w,
                         const ffi::Buffer<ffi::F32>& scale, const Call& call) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1];
  const PackedMatrix matrix{w.typed_data(), scale.typed_data(), nullptr, static_cast<int64_t>(scale.element_count())};
  WithType(x, [&](const auto* from) {
    call(OutputLayer<Int8Kernel>{Prepare<Int8Kernel, 0>(pool, from, rows, inputs), rows, inputs, matrix, cap});
  });
  return ffi::Error::Success();
}

// Calls with an `OutputLayer` of bfloat16.
template <typename Call>
ffi::Error WithBf16Layer(ffi::ThreadPool& pool, bool in_pairs, float cap, const Bf16Buffer& x, const Bf16Buffer& w,
                         const Call& call) {
  const int64_t rows = x.dimensions()[0], inputs = x.dimensions()[1];
  const PackedMatrix matrix{BytesOf(w), nullptr, nullptr, w.dimensions()[0] * kStripOutputs};
  const auto with = [&](auto kernel) {
    using K = decltype(kernel);
    call(OutputLayer<K>{Prepare<K, 0>(pool, Bf16Of(x), rows, inputs), rows, inputs, matrix, cap});
  };
  in_pairs ? with(PairKernel{}) : with(WideKernel{});
  return ffi::Error::Success();
}

ffi::Error Int8LogitsImpl(ffi::ThreadPool pool, float cap, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                          ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::F32> y) {
  return WithInt8Layer(pool, cap, x, w, scale, [&](const auto& layer) { Logits(pool, layer, y->typed_data()); });
}

ffi::Error Int8ArgmaxImpl(ffi::ThreadPool pool, float cap, ffi::AnyBuffer x, ffi::Buffer<ffi::U8> w,
                          ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::S32> tokens,
                          ffi::ResultBuffer<ffi::F32> largest) {
  return WithInt8Layer(pool, cap, x, w, scale,
                       [&](const auto& layer) { Argmax(pool, layer, tokens->typed_data(), largest->typed_data()); });
}

ffi::Error Bf16LogitsImpl(ffi::ThreadPool pool, bool in_pairs, float cap, Bf16Buffer x, Bf16Buffer w,
                          ffi::ResultBuffer<ffi::F32> y) {
  return WithBf16Layer(pool, in_pairs, cap, x, w, [&](const auto& layer) { Logits(pool, layer, y->typed_data()); });
}

ffi::Error Bf16ArgmaxImpl(ffi::ThreadPool pool, bool in_pairs, float cap, Bf16Buffer x, Bf16Buffer w,
                          ffi::ResultBuffer<ffi::S32> tokens, ffi::ResultBuffer<ffi::F32> largest) {
  return WithBf16Layer(pool, in_pairs, cap, x, w,
                       [&](const auto& layer) { Argmax(pool, layer, tokens->typed_data(), largest->typed_data()); });
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

ffi::Error Bf16GatedMlpImpl(ffi::ThreadPool pool, bool in_pairs, ffi::Buffer<ffi::BF16> x,
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
  in_pairs ? with(PairKernel{}) : with(WideKernel{});
  return ffi::Error::Success();
}

// ---- RMSNorm

// Computes x * rsqrt(mean(x²) + eps) * (1 + scale) of a row, whose squares are added in the same order in any batch.
void NormRow(const uint16_t* x, const float* scale, float eps, int64_t width, uint16_t* out) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t e = 0; e < width; e += 16) squares = _mm512_fmadd_ps(Widen(x + e), Widen(x + e), squares);
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + eps));
  for (int64_t e = 0; e < width; e += 16) {
    const __m512 gain = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(scale + e));
    Store(out + e, _mm512_mul_ps(_mm512_mul_ps(Widen(x + e), factor), gain));
  }
}

ffi::Error RmsNormImpl(ffi::ThreadPool pool, float eps, Bf16Buffer x, ffi::Buffer<ffi::F32> scale,
                       ffi::Result<Bf16Buffer> out) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  auto* const to = static_cast<uint16_t*>(out->untyped_data());
  ForEachRow(pool, rows, width, [&](int64_t r) {
    NormRow(Bf16Of(x) + r * width, scale.typed_data(), eps, width, to + r * width);
  });
  return ffi::Error::Success();
}

ffi::Error AddRmsNormImpl(ffi::ThreadPool pool, float eps, Bf16Buffer x, Bf16Buffer y, ffi::Buffer<ffi::F32> scale,
                          ffi::Result<Bf16Buffer> sum, ffi::Result<Bf16Buffer> out) {
  const int64_t rows = x.dimensions()[0], width = x.dimensions()[1];
  auto* const sums = static_cast<uint16_t*>(sum->untyped_data());
  auto* const to = static_cast<uint16_t*>(out->untyped_data());
  ForEachRow(pool, rows, width, [&](int64_t r) {
    for (int64_t e = r * width; e < (r + 1) * width; e += 16) {
      Store(sums + e, _mm512_add_ps(Widen(Bf16Of(x) + e), Widen(Bf16Of(y) + e)));
    }
    NormRow(sums + r * width, scale.typed_data(), eps, width, to + r * width);
  });
  return ffi::Error::Success();
}

// ---- the recurrent block between its projections

// A diagonal block of the RG-LRU's gates has `inputs` channels and the columns of two gates for each. Packed, sixteen
// channels of both gates are a strip, which has 32 columns for each input.
constexpr int64_t kGateColumns = 32;

// Computes a strip for `Tokens` rows of x, which are `x_stride` apart; biases of the gates are `inputs` apart.
template <int Tokens>
ROOST_INLINE void GateSums(const float* w, const float* bias, const float* x, int64_t x_stride, int64_t last,
                           int64_t inputs, __m512 (&sums)[Tokens][2]) {
  const float* rows[Tokens];
  for (int r = 0; r < Tokens; ++r) rows[r] = x + std::min<int64_t>(r, last) * x_stride;
  ROOST_UNROLL
  for (int r = 0; r < Tokens; ++r) {
    sums[r][0] = _mm512_loadu_ps(bias);
    sums[r][1] = _mm512_loadu_ps(bias + inputs);
  }
  for (int64_t i = 0; i < inputs; ++i, w += kGateColumns) {
    const __m512 a = _mm512_loadu_ps(w), b = _mm512_loadu_ps(w + 16);
    ROOST_UNROLL
    for (int r = 0; r < Tokens; ++r) {
      const __m512 factor = _mm512_set1_ps(rows[r][i]);
      sums[r][0] = _mm512_fmadd_ps(factor, a, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(factor, b, sums[r][1]);
    }
  }
}

// The block for `steps` tokens of each row. Tokens are numbered row after row, and a row's padding comes last. A token's
// bits depend on its row's state and on its tokens up to this one, but not on where chunks of the row begin.
template <typename X>
struct RecurrentBlock {
  const X* xy;  // [rows, steps, 2 * width], x first
  const float* conv_weight;
  const float* conv_bias;
  const float* gates;  // packed
  const float* gate_bias;
  const float* log_decay;
  const X* conv;  // [taps - 1, rows, width], oldest first
  const float* h;
  const int32_t* positions;
  int64_t rows, steps, width, taps, blocks;
  X* out;
  X* new_conv;
  float* new_h;
  int64_t every = 0;       // steps after which a state is kept; 0 means none
  float* kept_h = nullptr;  // [rows, steps / every, width]
  X* kept_conv = nullptr;   // [rows, steps / every, taps - 1, width]

  void Run(ffi::ThreadPool& pool) const {
    const int64_t tokens = rows * steps;
    thread_local std::vector<float> scratch;
    Grow(scratch, tokens * width);
    float* const c = scratch.data();
    ForEachRow(pool, tokens, width, [&](int64_t n) {
      Convolve(n / steps, n % steps, c + n * width);
      if ((n + 1) % steps == 0) KeepInputs(n / steps);
    });
    ForEach(pool, width / 16, [&](int64_t piece) {
      Place place;
      int64_t n = 0;
      for (; tokens - n > 2; n += 8) Strip<8>(piece, n, c, place);
      for (; n < tokens; n += 2) Strip<2>(piece, n, c, place);
    });
  }

 private:
  // The row and step of the next token of a strip, and the RG-LRU's state before it.
  struct Place {
    int64_t row = 0, step = 0;
    __m512 state{};
  };

  // Returns the inputs of a row's token; steps before the first are in the state of the convolution.
  const X* Inputs(int64_t r, int64_t t) const {
    return t < 0 ? conv + ((taps - 1 + t) * rows + r) * width : xy + (r * steps + t) * 2 * width;
  }

  // Computes the convolution of a row's token into c.
  void Convolve(int64_t r, int64_t t, float* c) const {
    const int64_t position = positions[r * steps + t];
    std::copy(conv_bias, conv_bias + width, c);
    for (int64_t s = 0; s < taps && s <= std::max<int64_t>(position, 0); ++s) {
      const X* const x = Inputs(r, t - s);
      const float* const weight = conv_weight + (taps - 1 - s) * width;
      for (int64_t e = 0; e < width; e += 16) {
        _mm512_storeu_ps(c + e, _mm512_fmadd_ps(Widen(x + e), _mm512_loadu_ps(weight + e), _mm512_loadu_ps(c + e)));
      }
    }
  }

  // Keeps the last inputs of a row, and those before each of its kept states.
  void KeepInputs(int64_t r) const {
    int64_t length = steps;
    while (length > 0 && positions[r * steps + length - 1] < 0) --length;
    CopyInputs(r, length, new_conv + r * width, rows * width);
    const int64_t count = every == 0 ? 0 : steps / every;
    for (int64_t m = 0; m < count; ++m) {
      CopyInputs(r, std::min((m + 1) * every, length), kept_conv + (r * count + m) * (taps - 1) * width, width);
    }
  }

  // Copies the inputs before a step, which become `stride` elements apart.
  void CopyInputs(int64_t r, int64_t end, X* to, int64_t stride) const {
    for (int64_t s = 0; s < taps - 1; ++s) {
      std::memcpy(to + s * stride, Inputs(r, end - (taps - 1) + s), width * sizeof(X));
    }
  }

  // Computes sixteen channels of a block for tokens [n, n + Tokens), and takes their place behind them.
  template <int Tokens>
  ROOST_INLINE void Strip(int64_t piece, int64_t n, const float* c, Place& place) const {
    const int64_t size = width / blocks, strips = size / 16, tokens = rows * steps;
    const int64_t block = piece / strips, o = piece % strips * 16;
    __m512 gate[Tokens][2];
    GateSums<Tokens>(gates + piece * size * kGateColumns, gate_bias + block * 2 * size + o, c + n * width + block * size,
                     width, tokens - n - 1, size, gate);
    for (int i = 0; i < Tokens && n + i < tokens; ++i) {
      Update(n + i, block * size + o, gate[i][0], gate[i][1], c + (n + i) * width, place);
    }
  }

  // Computes sixteen channels of a token from their gates' pre-activations and its convolution.
  ROOST_INLINE void Update(int64_t n, int64_t e, __m512 input_gate, __m512 recurrence_gate, const float* c,
                           Place& place) const {
    if (place.step == 0) place.state = _mm512_loadu_ps(h + place.row * width + e);
    __m512 mixed = _mm512_setzero_ps();
    if (positions[n] >= 0) {
      const __m512 gated = _mm512_mul_ps(Sigmoid(input_gate), _mm512_loadu_ps(c + e));
      place.state = positions[n] == 0 ? gated : After(place.state, e, recurrence_gate, gated);
      mixed = _mm512_mul_ps(place.state, Gelu(Widen(xy + (2 * n + 1) * width + e)));
    }
    Store(out + n * width + e, mixed);
    ++place.step;
    if (every != 0 && place.step % every == 0) {
      const int64_t before = place.row * (steps / every) + place.step / every - 1;
      _mm512_storeu_ps(kept_h + before * width + e, place.state);
    }
    if (place.step == steps) {
      _mm512_storeu_ps(new_h + place.row * width + e, place.state);
      ++place.row;
      place.step = 0;
    }
  }

  // Returns sixteen channels of the RG-LRU's state after a token.
  ROOST_INLINE __m512 After(__m512 state, int64_t e, __m512 recurrence_gate, __m512 gated) const {
    const __m512 log_a = _mm512_mul_ps(_mm512_loadu_ps(log_decay + e), Sigmoid(recurrence_gate)), a = Exp(log_a);
    const __m512 rest = OneMinusExp(_mm512_add_ps(log_a, log_a), _mm512_mul_ps(a, a));
    return _mm512_fmadd_ps(a, state, _mm512_mul_ps(_mm512_sqrt_ps(rest), gated));
  }
};

// Returns the block with the arguments that calls for a step and for a chunk share; `steps` is 1 in a step.
template <typename X>
RecurrentBlock<X> BlockOf(X* xy, int64_t steps, const ffi::Buffer<ffi::F32>& conv_weight,
                          const ffi::Buffer<ffi::F32>& conv_bias, const ffi::Buffer<ffi::F32>& gates,
                          const ffi::Buffer<ffi::F32>& gate_bias, const ffi::Buffer<ffi::F32>& log_decay,
                          const ffi::AnyBuffer& conv, const ffi::Buffer<ffi::F32>& h,
                          const ffi::Buffer<ffi::S32>& positions, ffi::Result<ffi::AnyBuffer>& out,
                          ffi::Result<ffi::AnyBuffer>& new_conv, ffi::ResultBuffer<ffi::F32>& new_h) {
  const auto typed = [](const ffi::AnyBuffer& array) { return static_cast<X*>(array.untyped_data()); };
  return {xy, conv_weight.typed_data(), conv_bias.typed_data(), gates.typed_data(), gate_bias.typed_data(),
          log_decay.typed_data(), typed(conv), h.typed_data(), positions.typed_data(), h.dimensions()[0], steps,
          h.dimensions()[1], conv_weight.dimensions()[0], gates.dimensions()[0], typed(*out), typed(*new_conv),
          new_h->typed_data()};
}

ffi::Error RecurrentStepImpl(ffi::ThreadPool pool, ffi::AnyBuffer xy, ffi::Buffer<ffi::F32> conv_weight,
                             ffi::Buffer<ffi::F32> conv_bias, ffi::Buffer<ffi::F32> gates,
                             ffi::Buffer<ffi::F32> gate_bias, ffi::Buffer<ffi::F32> log_decay, ffi::AnyBuffer conv,
                             ffi::Buffer<ffi::F32> h, ffi::Buffer<ffi::S32> positions, ffi::Result<ffi::AnyBuffer> out,
                             ffi::Result<ffi::AnyBuffer> new_conv, ffi::ResultBuffer<ffi::F32> new_h) {
  WithType(xy, [&](auto* x) {
    BlockOf(x, 1, conv_weight, conv_bias, gates, gate_bias, log_decay, conv, h, positions, out, new_conv, new_h)
        .Run(pool);
  });
  return ffi::Error::Success();
}

ffi::Error RecurrentChunkImpl(ffi::ThreadPool pool, int64_t every, ffi::AnyBuffer xy, ffi::Buffer<ffi::F32> conv_weight,
                              ffi::Buffer<ffi::F32> conv_bias, ffi::Buffer<ffi::F32> gates,
                              ffi::Buffer<ffi::F32> gate_bias, ffi::Buffer<ffi::F32> log_decay, ffi::AnyBuffer conv,
                              ffi::Buffer<ffi::F32> h, ffi::Buffer<ffi::S32> positions, ffi::Result<ffi::AnyBuffer> out,
                              ffi::Result<ffi::AnyBuffer> new_conv, ffi::ResultBuffer<ffi::F32> new_h,
                              ffi::Result<ffi::AnyBuffer> kept_conv, ffi::ResultBuffer<ffi::F32> kept_h) {
  WithType(xy, [&](auto* x) {
    auto block = BlockOf(x, xy.dimensions()[1], conv_weight, conv_bias, gates, gate_bias, log_decay, conv, h, positions,
                         out, new_conv, new_h);
    block.every = every;
    block.kept_h = kept_h->typed_data();
    block.kept_conv = static_cast<decltype(x)>(kept_conv->untyped_data());
    block.Run(pool);
  });
  return ffi::Error::Success();
}

// ---- attention of one query per row

struct Scaled {
  float scale;

  template <int Outputs>
  ROOST_INLINE __m512 Numbers(__m512 sums, int64_t, int64_t, int64_t) const {
    return _mm512_mul_ps(sums, _mm512_set1_ps(scale));
  }
};

// The filled part of a block of a row's ring.
struct RingBlock {
  const uint16_t* keys;
  const uint16_t* values;
  int64_t length;
};

constexpr int64_t kLead = 16384;  // bytes between what is read and what is prefetched: a third of an L1 cache

// Keys and values in the order in which a thread reads them: a row's keys, its values, then those of the row after it.
class Reading {
 public:
  void Add(const std::vector<RingBlock>& blocks, int64_t size) {
    for (const RingBlock& block : blocks) parts_.push_back({block.keys, block.length * size * 2});
    for (const RingBlock& block : blocks) parts_.push_back({block.values, block.length * size * 2});
  }

  // Returns how far behind `at` lies what is read `kLead` bytes after it; `read` bytes are read before it.
  int64_t Ahead(const void* at, int64_t read) const {
    int64_t left = read + kLead;
    for (const Part& part : parts_) {
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
  std::vector<Part> parts_;
};

// Adds `count` tokens' values, times their weights, to the sums of `Heads` heads and 16 * `Parts` elements of each;
// weights of heads are `stride` apart.
template <int Heads, int Parts>
ROOST_INLINE void Mix(const float* weights, int64_t stride, const uint16_t* values, int64_t count, int64_t size,
                      int64_t ahead, float* sums) {
  __m512 acc[Heads][Parts];
  ROOST_UNROLL
  for (int n = 0; n < Heads; ++n) {
    ROOST_UNROLL
    for (int c = 0; c < Parts; ++c) acc[n][c] = _mm512_loadu_ps(sums + n * size + 16 * c);
  }
  for (int64_t w = 0; w < count; ++w, values += size) {
    __m512 v[Parts];
    ROOST_UNROLL
    for (int c = 0; c < Parts; ++c) v[c] = Widen(values + 16 * c);
    ROOST_UNROLL
    for (int c = 0; c < Parts; c += 2) Prefetch(values + 16 * c, ahead);
    ROOST_UNROLL
    for (int n = 0; n < Heads; ++n) {
      const __m512 p = _mm512_set1_ps(weights[n * stride + w]);
      ROOST_UNROLL
      for (int c = 0; c < Parts; ++c) acc[n][c] = _mm512_fmadd_ps(p, v[c], acc[n][c]);
    }
  }
  ROOST_UNROLL
  for (int n = 0; n < Heads; ++n) {
    ROOST_UNROLL
    for (int c = 0; c < Parts; ++c) _mm512_storeu_ps(sums + n * size + 16 * c, acc[n][c]);
  }
}

constexpr int64_t kMostHeads = 6;  // whose sums of 64 elements leave registers for the values

// Mixes values for `heads` heads, at most `Heads`, with as many instructions as they need.
template <int Heads>
void MixHeads(int64_t heads, const float* weights, int64_t stride, const uint16_t* values, int64_t count, int64_t size,
              int64_t ahead, float* sums) {
  if constexpr (Heads > 1) {
    if (heads < Heads) return MixHeads<Heads - 1>(heads, weights, stride, values, count, size, ahead, sums);
  }
  int64_t e = 0;
  for (; e + 64 <= size; e += 64) Mix<Heads, 4>(weights, stride, values + e, count, size, ahead, sums + e);
  for (; e < size; e += 16) Mix<Heads, 1>(weights, stride, values + e, count, size, ahead, sums + e);
}

constexpr int64_t kMixBytes = 16384;  // bytes of values that stay in the L1 cache for all heads and elements

// A row's attention: N query heads and one head of keys and values.
struct AttentionRow {
  const uint16_t* q;
  const uint16_t* key;  // the token's own
  const uint16_t* value;
  const std::vector<RingBlock>& blocks;
  const Reading& reading;
  int64_t heads, size;
  float* out;

  void Attend() const {
    int64_t filled = 0;
    for (const RingBlock& block : blocks) filled += block.length;
    const int64_t stride = (filled + 15) / 16 * 16;
    thread_local std::vector<float> scratch;
    Grow(scratch, heads * stride + 2 * heads);
    float* const scores = scratch.data();
    float* const own = scores + heads * stride;
    float* const totals = own + heads;
    Score(scores, stride);
    for (int64_t n = 0; n < heads; ++n) Weigh(q + n * size, scores + n * stride, filled, own + n, totals + n);
    MixValues(scores, stride, filled, own);
    for (int64_t n = 0; n < heads; ++n) {
      for (float* at = out + n * size; at < out + (n + 1) * size; at += 16) {
        Store(at, _mm512_div_ps(Widen(at), _mm512_set1_ps(totals[n])));
      }
    }
  }

 private:
  Scaled ScaledProducts() const { return {1.0f / std::sqrt(static_cast<float>(size))}; }

  // Computes the scores of all heads.
  void Score(float* scores, int64_t stride) const {
    int64_t before = 0;
    for (const RingBlock& block : blocks) {
      const auto ahead = [&](const uint16_t* at) { return reading.Ahead(at, 2 * (before * size + (at - block.keys))); };
      Product<Bf16>(block.keys, block.length, q, heads, size, scores + before, stride, ScaledProducts(), ahead);
      before += block.length;
    }
  }

  // Turns a head's scores into weights, and computes the weight of the token's own key and the sum of all.
  void Weigh(const uint16_t* query, float* scores, int64_t filled, float* own, float* total) const {
    alignas(64) float lanes[16];
    const uint16_t* keys[16];
    const uint16_t* const queries[1] = {query};
    for (auto& k : keys) k = key;
    _mm512_store_ps(lanes, ScaledProducts().Numbers<16>(Tile<Bf16, 16, 1, false>(keys, queries, size, 0), 0, 16, 0));
    __m512 largest = _mm512_set1_ps(lanes[0]);
    for (int64_t w = 0; w < filled; w += 16) {
      const __mmask16 mask = (1u << std::min<int64_t>(16, filled - w)) - 1;
      largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_maskz_loadu_ps(mask, scores + w));
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sums = _mm512_setzero_ps();
    for (int64_t w = 0; w < filled; w += 16) {
      const __mmask16 mask = (1u << std::min<int64_t>(16, filled - w)) - 1;
      const __m512 weights = Exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, scores + w), top));
      sums = _mm512_mask_add_ps(sums, mask, sums, weights);
      _mm512_mask_storeu_ps(scores + w, mask, weights);
    }
    *own = _mm512_cvtss_f32(Exp(_mm512_sub_ps(_mm512_set1_ps(lanes[0]), top)));
    *total = *own + _mm512_reduce_add_ps(sums);
  }

  // Computes the weighted sums of values, a few tokens at a time.
  void MixValues(const float* weights, int64_t stride, int64_t filled, const float* own) const {
    for (int64_t n = 0; n < heads; ++n) {
      for (int64_t e = 0; e < size; e += 16) {
        Store(out + n * size + e, _mm512_mul_ps(_mm512_set1_ps(own[n]), Widen(value + e)));
      }
    }
    const int64_t passes = (heads + kMostHeads - 1) / kMostHeads, some = std::max<int64_t>(1, kMixBytes / (2 * size));
    int64_t before = 0;
    for (const RingBlock& block : blocks) {
      for (int64_t w = 0; w < block.length; w += some) {
        const uint16_t* const at = block.values + w * size;
        const int64_t ahead = reading.Ahead(at, 2 * size * (filled + before + w));
        for (int64_t pass = 0; pass < passes; ++pass) {
          const int64_t n = heads * pass / passes, next = heads * (pass + 1) / passes;
          MixHeads<kMostHeads>(next - n, weights + n * stride + before + w, stride, at, std::min(some, block.length - w),
                               size, ahead, out + n * size);
        }
      }
      before += block.length;
    }
  }
};

// Attention of a decode step over the rings of all rows, which are in consecutive groups with blocks of their own.
struct DecodeAttention {
  using Rings = std::vector<std::pair<Bf16Buffer, Bf16Buffer>>;  // keys and values of blocks, group after group

  const uint16_t* q;
  const uint16_t* k;
  const uint16_t* v;
  const int32_t* positions;
  const Rings& rings;
  int64_t rows, heads, size, window;
  float* out;

  void Run(ffi::ThreadPool& pool) const {
    ForEach(pool, rows, [&](int64_t b) {
      float* const to = out + b * heads * size;
      if (positions[b] < 0) {
        std::fill(to, to + heads * size, 0.0f);
        return;
      }
      const std::vector<RingBlock> blocks = Filled(b);
      Reading reading;
      reading.Add(blocks, size);
      if (b + 1 < rows) reading.Add(Filled(b + 1), size);
      AttentionRow{q + b * heads * size, k + b * size, v + b * size, blocks, reading, heads, size, to}.Attend();
      Write(b);
    });
  }

 private:
  // Calls with keys and values of each of a row's blocks, the first token in them, and their number of tokens.
  template <typename Call>
  void ForEachBlock(int64_t b, const Call& call) const {
    int64_t begin = 0;
    for (const auto& [keys, values] : rings) {
      const int64_t group = keys.dimensions()[0], length = keys.dimensions()[1];
      const auto of_row = [&](const Bf16Buffer& x) { return static_cast<uint16_t*>(x.untyped_data()) + b * length * size; };
      if (b < group) call(of_row(keys), of_row(values), begin, length);
      begin += length;
      if (begin == window) {  // the next group begins
        if (b < group) return;
        b -= group;
        begin = 0;
      }
    }
  }

  std::vector<RingBlock> Filled(int64_t b) const {
    std::vector<RingBlock> blocks;
    ForEachBlock(b, [&](uint16_t* keys, uint16_t* values, int64_t begin, int64_t length) {
      const int64_t filled = std::min<int64_t>(length, positions[b] - begin);
      if (filled > 0) blocks.push_back({keys, values, filled});
    });
    return blocks;
  }

  // Writes the token's key and value over those of the token `window` before it.
  void Write(int64_t b) const {
    const int64_t place = positions[b] % window;
    ForEachBlock(b, [&](uint16_t* keys, uint16_t* values, int64_t begin, int64_t length) {
      if (place < begin || place >= begin + length) return;
      std::memcpy(keys + (place - begin) * size, k + b * size, 2 * size);
      std::memcpy(values + (place - begin) * size, v + b * size, 2 * size);
    });
  }
};

// The new rings have the memory of the old ones, which are the remaining arguments.
ffi::Error DecodeAttentionImpl(ffi::ThreadPool pool, int64_t window, Bf16Buffer q, Bf16Buffer k, Bf16Buffer v,
                               ffi::Buffer<ffi::S32> positions, ffi::RemainingArgs, ffi::ResultBuffer<ffi::F32> out,
                               ffi::RemainingRets rings) {
  DecodeAttention::Rings blocks;
  for (size_t i = 0; i + 1 < rings.size(); i += 2) {
    const auto keys = rings.get<Bf16Buffer>(i), values = rings.get<Bf16Buffer>(i + 1);
    if (!keys.has_value()) return keys.error();
    if (!values.has_value()) return values.error();
    blocks.emplace_back(**keys, **values);
  }
  const auto sizes = q.dimensions();
  DecodeAttention{Bf16Of(q), Bf16Of(k), Bf16Of(v), positions.typed_data(), blocks, sizes[0], sizes[1], sizes[2], window,
                  out->typed_data()}
      .Run(pool);
  return ffi::Error::Success();
}

// ---- attention of a chunk

constexpr int64_t kTileTokens = 8;  // tokens whose scores, of all heads, stay in the L2 cache

// Attention of a row's chunk to the window before it and to itself. Keys and values become packed matrices whose first
// position is a multiple of 16, and are added in the order of positions. So a query's bits depend on its position and on
// what it sees, but not on where chunks begin.
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
  // Keys, with an output for each of `count` positions from `begin` on, and values, with an input for each.
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

  // Packs sixteen positions from the `i`th on.
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
        const __m512i low = _mm512_srli_epi32(Bits(Widen(even + e)), 16);
        _mm512_storeu_si512(packed.values + (e / 16 * packed.count + j) * 32, _mm512_or_si512(low, Bits(Widen(odd + e))));
      }
    }
  }

  // Attends with all heads of tokens [first, last).
  void Attend(const Packed& packed, int64_t first, int64_t last) const {
    const int64_t from = (std::max<int64_t>(0, start + first - window) - packed.begin) / 16 * 16;
    const int64_t count = (start + last - packed.begin + 15) / 16 * 16 - from, rows = (last - first) * heads;
    thread_local std::vector<float> scores, totals;
    thread_local std::vector<typename K::X> weights;
    Grow(scores, rows * count);
    Grow(totals, rows);
    Grow(weights, rows * count);
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(size)));
    PackedProduct<K>(Strips<K>{packed.keys + from * 2 * size, size}, 0, count, q + first * heads * size, rows,
                     scores.data(), count, [=](__m512 sums, int64_t, int64_t) { return _mm512_mul_ps(sums, scale); });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t position = start + first + r / heads, own = position - packed.begin - from;
      const int64_t oldest = std::max<int64_t>(0, position - window) - packed.begin - from;
      totals[r] = Weigh(scores.data() + r * count, count, oldest, own + 1, weights.data() + r * count);
    }
    const float* const divisors = totals.data();
    PackedProduct<K>(Strips<K>{packed.values + from * 32, count, packed.count * 32}, 0, size, weights.data(), rows,
                     out + first * heads * size, size, [=](__m512 sums, int64_t, int64_t r) {
                       return _mm512_div_ps(sums, _mm512_set1_ps(divisors[r]));
                     });
  }

  // Computes weights from scores [begin, end), and zeros from the others; returns the sum of the weights.
  static float Weigh(const float* scores, int64_t count, int64_t begin, int64_t end, typename K::X* weights) {
    const auto seen = [=](int64_t w) -> __mmask16 {
      const int64_t low = std::clamp<int64_t>(begin - w, 0, 16), high = std::clamp<int64_t>(end - w, 0, 16);
      return ((1u << high) - 1) & ~((1u << low) - 1);
    };
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    for (int64_t w = 0; w < count; w += 16) largest = _mm512_mask_max_ps(largest, seen(w), largest, Widen(scores + w));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sums = _mm512_setzero_ps();
    for (int64_t w = 0; w < count; w += 16) {
      const __m512 some = _mm512_maskz_mov_ps(seen(w), Exp(_mm512_sub_ps(Widen(scores + w), top)));
      sums = _mm512_add_ps(sums, some);
      Store(weights + w, some);
    }
    return _mm512_reduce_add_ps(sums);
  }
};

ffi::Error PrefillAttentionImpl(ffi::ThreadPool pool, bool in_pairs, Bf16Buffer q, Bf16Buffer k, Bf16Buffer v,
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
  in_pairs ? with(PairKernel{}) : with(WideKernel{});
  return ffi::Error::Success();
}

}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_int8_product, Int8ProductImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_bf16_product, Bf16ProductImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("in_pairs")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_int8_logits, Int8LogitsImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("cap")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_int8_argmax, Int8ArgmaxImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("cap")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_bf16_logits, Bf16LogitsImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("in_pairs")
                                  .Attr<float>("cap")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_bf16_argmax, Bf16ArgmaxImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("in_pairs")
                                  .Attr<float>("cap")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_int8_gated_mlp, Int8GatedMlpImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_bf16_gated_mlp, Bf16GatedMlpImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("in_pairs")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::BF16>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_rms_norm, RmsNormImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("eps")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::BF16>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_add_rms_norm, AddRmsNormImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<float>("eps")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::BF16>>()
                                  .Ret<ffi::Buffer<ffi::BF16>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_recurrent_step, RecurrentStepImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_recurrent_chunk, RecurrentChunkImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("every")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_decode_attention, DecodeAttentionImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<int64_t>("window")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(roost_prefill_attention, PrefillAttentionImpl,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Attr<bool>("in_pairs")
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::BF16>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::BF16>>());

// Returns the version of the calls' arguments and bits, which is `CALLS_VERSION` in __init__.py.
extern "C" int roost_calls_version() { return 3; }

// Returns whether `PairKernel` is the faster one here.
extern "C" int roost_is_pair_fast() { return __builtin_cpu_is("amd") != 0; }

// Returns whether this processor has the instructions.
extern "C" int roost_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

#else

extern "C" int roost_supported() { return 0; }

#endif
