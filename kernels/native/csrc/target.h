// Instruction sets of the kernels, AVX2 or AVX-512 with VNNI, and what has to be inlined or unrolled.
//
// Code between ROOST_TARGET_BEGIN and ROOST_TARGET_END is compiled for those instruction sets. Code outside also runs
// on processors without them. Headers of the standard library and of XLA are included outside. The one instruction of
// AVX-512 BF16 is in lanes_avx512.h, and runs only where `HasPairs` returns true.

#pragma once

#include <immintrin.h>

#define ROOST_PRAGMA_OF(text) _Pragma(#text)
#define ROOST_PRAGMA(text) ROOST_PRAGMA_OF(text)
#ifdef ROOST_AVX2
#define ROOST_TARGET target("avx2,fma,f16c")
#else
#define ROOST_TARGET target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif

#if defined(__clang__)
#define ROOST_TARGET_BEGIN ROOST_PRAGMA(clang attribute push(__attribute__((ROOST_TARGET)), apply_to = function))
#define ROOST_TARGET_END ROOST_PRAGMA(clang attribute pop)
#else
#define ROOST_TARGET_BEGIN ROOST_PRAGMA(GCC push_options) ROOST_PRAGMA(GCC ROOST_TARGET)
#define ROOST_TARGET_END ROOST_PRAGMA(GCC pop_options)
#endif

// Returns whether this processor adds products of pairs of bfloat16 by an instruction, which is AVX-512 BF16.
inline bool HasPairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}

#define ROOST_INLINE inline __attribute__((always_inline))
#define ROOST_UNROLL ROOST_PRAGMA(GCC unroll 16)  // early enough for an array of registers to become registers
