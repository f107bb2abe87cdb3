// Instruction sets of the kernels, AVX-512 with VNNI and BF16, and what has to be inlined or unrolled.
//
// Code between ROOST_TARGET_BEGIN and ROOST_TARGET_END is compiled for those instruction sets. Code outside also runs
// on processors without them. Headers of the standard library and of XLA are included outside.

#pragma once

#include <immintrin.h>

#if defined(__clang__)
#define ROOST_TARGET_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma\"))), apply_to = function)")
#define ROOST_TARGET_END _Pragma("clang attribute pop")
#else
#define ROOST_TARGET_BEGIN \
  _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma\")")
#define ROOST_TARGET_END _Pragma("GCC pop_options")
#endif

#define ROOST_INLINE inline __attribute__((always_inline))
#define ROOST_UNROLL _Pragma("GCC unroll 16")  // early enough for an array of registers to become registers
