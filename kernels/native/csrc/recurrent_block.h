// Recurrent block between its projections: convolution, gates, RG-LRU and product with gelu(y), for B rows of T tokens
// and E channels (arXiv 2402.19427, section 2.3).
//
// xy is `[B, T, 2 E]`, the state of the convolution `[K - 1, P, E]`, and that of the RG-LRU `[P, E]`. Holds the calls
// `recurrent_step`, where T is 1 and P at least B, and the state is updated in place; and `recurrent_chunk`, where P is B.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "activations.h"
#include "buffers.h"
#include "threads.h"
#include "vectors.h"

ROOST_TARGET_BEGIN
namespace {

// Number of columns in a packed strip of the RG-LRU's gates: sixteen channels of each of the two gates. A diagonal
// block of the gates has `inputs` channels, and a strip has 32 columns for each input.
constexpr int64_t kGateColumns = 32;

// Computes a strip of both gates for `Tokens` rows of x, which are `x_stride` apart. The biases of the two gates are
// `inputs` apart.
template <int Tokens>
ROOST_INLINE void GateSums(const float* w, const float* bias, const float* x, int64_t x_stride, int64_t last,
                           int64_t inputs, Floats (&sums)[Tokens][2]) {
  const float* rows[Tokens];
  for (int r = 0; r < Tokens; ++r) rows[r] = x + std::min<int64_t>(r, last) * x_stride;
  ROOST_UNROLL
  for (int r = 0; r < Tokens; ++r) {
    sums[r][0] = Load(bias);
    sums[r][1] = Load(bias + inputs);
  }
  for (int64_t i = 0; i < inputs; ++i, w += kGateColumns) {
    const Floats a = Load(w), b = Load(w + 16);
    ROOST_UNROLL
    for (int r = 0; r < Tokens; ++r) {
      const Floats factor = Splat(rows[r][i]);
      sums[r][0] = TimesPlus(factor, a, sums[r][0]);
      sums[r][1] = TimesPlus(factor, b, sums[r][1]);
    }
  }
}

// The block for `steps` tokens of each row. Tokens are numbered row after row, and a row's padding comes last. A
// token's bits depend on its row's state and on its tokens up to this one, but not on where chunks of the row begin.
template <typename X>
struct RecurrentBlock {
  const X* xy;  // [rows, steps, 2 * width], x first
  const float* conv_weight;
  const float* conv_bias;
  const float* gates;  // packed
  const float* gate_bias;
  const float* log_decay;
  const X* conv;  // [taps - 1, pool, width], oldest first
  const float* h;
  const int32_t* positions;
  int64_t pool_rows, rows, steps, width, taps, blocks;
  X* out;
  X* new_conv;
  float* new_h;
  int64_t every = 0;       // steps after which a state is kept; 0 means none
  float* kept_h = nullptr;  // [rows, steps / every, width]
  X* kept_conv = nullptr;   // [rows, steps / every, taps - 1, width]

  void Run(ffi::ThreadPool& pool) const {
    const int64_t tokens = rows * steps;
    int64_t used = tokens;  // without the padding at the end, which costs no products
    while (used > 0 && positions[used - 1] < 0) --used;
    thread_local std::vector<float> scratch;
    Grow(scratch, used * width);
    float* const c = scratch.data();
    ForEachRow(pool, tokens, width, [&](int64_t n) {
      if (n < used) Convolve(n / steps, n % steps, c + n * width);
      if ((n + 1) % steps == 0) KeepInputs(n / steps);
    });
    ForEach(pool, width / 16, [&](int64_t piece) {
      Place place;
      int64_t n = 0;
      if constexpr (kManyRegisters) {
        for (; used - n > 2; n += 8) Strip<8>(piece, n, used, c, place);
      }
      for (; n < used; n += 2) Strip<2>(piece, n, used, c, place);
      const int64_t e = piece * 16;
      for (n = used; n < tokens; ++n) Update(n, e, Floats{}, Floats{}, nullptr, place);
    });
  }

 private:
  // The row and step of the next token of a strip, and the RG-LRU's state before it.
  struct Place {
    int64_t row = 0, step = 0;
    Floats state{};
  };

  // Returns the inputs of a row's token; steps before the first are in the state of the convolution.
  const X* Inputs(int64_t r, int64_t t) const {
    return t < 0 ? conv + ((taps - 1 + t) * pool_rows + r) * width : xy + (r * steps + t) * 2 * width;
  }

  // Computes the convolution of a row's token into c.
  void Convolve(int64_t r, int64_t t, float* c) const {
    const int64_t position = positions[r * steps + t];
    std::copy(conv_bias, conv_bias + width, c);
    for (int64_t s = 0; s < taps && s <= std::max<int64_t>(position, 0); ++s) {
      const X* const x = Inputs(r, t - s);
      const float* const weight = conv_weight + (taps - 1 - s) * width;
      for (int64_t e = 0; e < width; e += 16) {
        Store(c + e, TimesPlus(Widen(x + e), Load(weight + e), Load(c + e)));
      }
    }
  }

  // Keeps the last inputs of a row, and those before each of its kept states.
  void KeepInputs(int64_t r) const {
    int64_t length = steps;
    while (length > 0 && positions[r * steps + length - 1] < 0) --length;
    CopyInputs(r, length, new_conv + r * width, pool_rows * width);
    const int64_t count = every == 0 ? 0 : steps / every;
    for (int64_t m = 0; m < count; ++m) {
      CopyInputs(r, std::min((m + 1) * every, length), kept_conv + (r * count + m) * (taps - 1) * width, width);
    }
  }

  // Copies the taps - 1 inputs before step `end` to positions that are `stride` elements apart.
  void CopyInputs(int64_t r, int64_t end, X* to, int64_t stride) const {
    for (int64_t s = 0; s < taps - 1; ++s) {
      std::memmove(to + s * stride, Inputs(r, end - (taps - 1) + s), width * sizeof(X));
    }
  }

  // Computes sixteen channels of a block for tokens [n, n + Tokens) below `tokens`, and moves `place` past them.
  template <int Tokens>
  ROOST_INLINE void Strip(int64_t piece, int64_t n, int64_t tokens, const float* c, Place& place) const {
    const int64_t size = width / blocks, strips = size / 16;
    const int64_t block = piece / strips, o = piece % strips * 16;
    Floats gate[Tokens][2];
    GateSums<Tokens>(gates + piece * size * kGateColumns, gate_bias + block * 2 * size + o,
                     c + n * width + block * size, width, tokens - n - 1, size, gate);
    for (int i = 0; i < Tokens && n + i < tokens; ++i) {
      Update(n + i, block * size + o, gate[i][0], gate[i][1], c + (n + i) * width, place);
    }
  }

  // Computes sixteen channels of a token from their gates' pre-activations and its convolution.
  ROOST_INLINE void Update(int64_t n, int64_t e, Floats input_gate, Floats recurrence_gate, const float* c,
                           Place& place) const {
    if (place.step == 0) place.state = Load(h + place.row * width + e);
    Floats mixed = Floats{};
    if (positions[n] >= 0) {
      const Floats gated = Times(Sigmoid(input_gate), Load(c + e));
      place.state = positions[n] == 0 ? gated : After(place.state, e, recurrence_gate, gated);
      mixed = Times(place.state, Gelu(Widen(xy + (2 * n + 1) * width + e)));
    }
    Store(out + n * width + e, mixed);
    ++place.step;
    if (every != 0 && place.step % every == 0) {
      const int64_t before = place.row * (steps / every) + place.step / every - 1;
      Store(kept_h + before * width + e, place.state);
    }
    if (place.step == steps) {
      Store(new_h + place.row * width + e, place.state);
      ++place.row;
      place.step = 0;
    }
  }

  // Returns sixteen channels of the RG-LRU's state after a token.
  ROOST_INLINE Floats After(Floats state, int64_t e, Floats recurrence_gate, Floats gated) const {
    const Floats log_a = Times(Load(log_decay + e), Sigmoid(recurrence_gate)), a = Exp(log_a);
    const Floats rest = OneMinusExp(Plus(log_a, log_a), Times(a, a));
    return TimesPlus(a, state, Times(Sqrt(rest), gated));
  }
};

// Returns the block of a call, with the arguments that `recurrent_step` and `recurrent_chunk` share.
template <typename X>
RecurrentBlock<X> BlockOf(X* xy, int64_t steps, const ffi::Buffer<ffi::F32>& conv_weight,
                          const ffi::Buffer<ffi::F32>& conv_bias, const ffi::Buffer<ffi::F32>& gates,
                          const ffi::Buffer<ffi::F32>& gate_bias, const ffi::Buffer<ffi::F32>& log_decay,
                          const ffi::AnyBuffer& conv, const ffi::Buffer<ffi::F32>& h,
                          const ffi::Buffer<ffi::S32>& positions, ffi::Result<ffi::AnyBuffer>& out,
                          ffi::Result<ffi::AnyBuffer>& new_conv, ffi::ResultBuffer<ffi::F32>& new_h) {
  const auto typed = [](const ffi::AnyBuffer& array) { return static_cast<X*>(array.untyped_data()); };
  return {xy, conv_weight.typed_data(), conv_bias.typed_data(), gates.typed_data(), gate_bias.typed_data(),
          log_decay.typed_data(), typed(conv), h.typed_data(), positions.typed_data(), h.dimensions()[0],
          static_cast<int64_t>(positions.element_count()) / steps, steps, h.dimensions()[1],
          conv_weight.dimensions()[0], gates.dimensions()[0], typed(*out), typed(*new_conv), new_h->typed_data()};
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

ffi::Error RecurrentChunkImpl(ffi::ThreadPool pool, Every every, ffi::AnyBuffer xy, ffi::Buffer<ffi::F32> conv_weight,
                              ffi::Buffer<ffi::F32> conv_bias, ffi::Buffer<ffi::F32> gates,
                              ffi::Buffer<ffi::F32> gate_bias, ffi::Buffer<ffi::F32> log_decay, ffi::AnyBuffer conv,
                              ffi::Buffer<ffi::F32> h, ffi::Buffer<ffi::S32> positions, ffi::Result<ffi::AnyBuffer> out,
                              ffi::Result<ffi::AnyBuffer> new_conv, ffi::ResultBuffer<ffi::F32> new_h,
                              ffi::Result<ffi::AnyBuffer> kept_conv, ffi::ResultBuffer<ffi::F32> kept_h) {
  WithType(xy, [&](auto* x) {
    auto block = BlockOf(x, xy.dimensions()[1], conv_weight, conv_bias, gates, gate_bias, log_decay, conv, h, positions,
                         out, new_conv, new_h);
    block.every = *every;
    block.kept_h = kept_h->typed_data();
    block.kept_conv = static_cast<decltype(x)>(kept_conv->untyped_data());
    block.Run(pool);
  });
  return ffi::Error::Success();
}

}  // namespace
ROOST_TARGET_END
