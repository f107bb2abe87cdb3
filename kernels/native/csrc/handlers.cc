// Kernels for x86 CPUs: the functions that XLA runs as custom calls, and their arguments. This file has them for AVX-512
// VNNI, and handlers_avx2.cc the same ones for AVX2.
//
// Decoding reads every weight once per step; these kernels read them at memory bandwidth. They also compute prefill
// chunks. A row's result depends neither on the other rows nor on the number of threads.
//
// Each header holds one subject. All are one translation unit, so that functions are inlined across headers.

#if defined(__x86_64__)

#include "products.h"
#include "gated_mlp.h"
#include "int4_product.h"
#include "output_layer.h"
#include "rms_norm.h"
#include "recurrent_block.h"
#include "decode_attention.h"
#include "prefill_attention.h"

#ifdef ROOST_AVX2
#define ROOST_CALL(name) roost_avx2_##name
#else
#define ROOST_CALL(name) roost_avx512_##name
#endif

// A call's arguments, results and attributes are the parameters of its function.
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(int8_product), Int8ProductImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(int4_product), Int4ProductImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(bf16_product), Bf16ProductImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(int8_logits), Int8LogitsImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(int8_argmax), Int8ArgmaxImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(bf16_logits), Bf16LogitsImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(bf16_argmax), Bf16ArgmaxImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(int8_gated_mlp), Int8GatedMlpImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(int4_gated_mlp), Int4GatedMlpImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(bf16_gated_mlp), Bf16GatedMlpImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(rms_norm), RmsNormImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(add_rms_norm), AddRmsNormImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(recurrent_step), RecurrentStepImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(recurrent_chunk), RecurrentChunkImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(decode_attention), DecodeAttentionImpl);
XLA_FFI_DEFINE_HANDLER_SYMBOL(ROOST_CALL(prefill_attention), PrefillAttentionImpl);

#ifndef ROOST_AVX2

// Returns the version of the calls' arguments and bits, which is `CALLS_VERSION` in library.py.
extern "C" int roost_calls_version() { return 8; }

// Returns whether this processor can run `PairKernel`.
extern "C" int roost_has_pairs() { return HasPairs(); }

// Returns whether `PairKernel` is faster than `WideKernel` on this processor, if it can run it.
extern "C" int roost_is_pair_fast() { return __builtin_cpu_is("amd") != 0; }

// Returns whether this processor has the instruction sets of lanes_avx512.h.
extern "C" int roost_has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// Returns whether this processor has the instruction sets of lanes_avx2.h.
extern "C" int roost_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#endif

#endif
