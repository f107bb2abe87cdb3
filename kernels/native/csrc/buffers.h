// Attributes of calls, and XLA's buffers as pointers to their elements. Elements in bfloat16 are `uint16_t`.

#pragma once

#include <cstdint>

#include "xla/ffi/api/ffi.h"

#include "target.h"

namespace ffi = xla::ffi;

ROOST_TARGET_BEGIN
namespace {

constexpr char kCap[] = "cap", kEps[] = "eps", kEvery[] = "every", kInPairs[] = "in_pairs";
using Cap = ffi::Attr<float, kCap>;           // soft cap of logits; 0 means none
using Eps = ffi::Attr<float, kEps>;           // number that is added to the mean square
using Every = ffi::Attr<int64_t, kEvery>;     // steps after which a state is kept; 0 means none
using IsInPairs = ffi::Attr<bool, kInPairs>;  // whether `PairKernel` computes products

// Returns null for an empty array, which stands for no bias.
const float* BiasOf(const ffi::Buffer<ffi::F32>& bias) {
  return bias.element_count() == 0 ? nullptr : bias.typed_data();
}

// Calls `call` with a pointer to the elements of an array in float32 or bfloat16.
template <typename Call>
void WithType(const ffi::AnyBuffer& x, const Call& call) {
  if (x.element_type() == ffi::BF16) return call(static_cast<uint16_t*>(x.untyped_data()));
  call(static_cast<float*>(x.untyped_data()));
}

template <typename Call>
void WithTypes(const ffi::AnyBuffer& x, const ffi::AnyBuffer& y, const Call& call) {
  WithType(x, [&](auto* from) { WithType(y, [&](auto* to) { call(from, to); }); });
}

using Bf16Buffer = ffi::Buffer<ffi::BF16>;
const uint8_t* BytesOf(const Bf16Buffer& x) { return reinterpret_cast<const uint8_t*>(x.untyped_data()); }
const uint16_t* Bf16Of(const Bf16Buffer& x) { return reinterpret_cast<const uint16_t*>(x.untyped_data()); }

}  // namespace
ROOST_TARGET_END
