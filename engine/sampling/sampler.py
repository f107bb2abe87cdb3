"""From logits to a token per row, on the device, at the price of what the rows ask for.

Every row is its own: its token depends on its logits, its parameters and (seed, position) alone. There is no sort of
the vocabulary: top-k, top-p and min-p are thresholds on a token's weight, so that tokens of equal weight are kept or
dropped together. A row whose threshold lies among its few likeliest tokens is drawn from those; only a row whose does
not pays for the whole vocabulary, where the threshold is found by bisection over the bits of a float32. So does one
with typical-p, which looks at all tokens anyway: it is a threshold on how far a token's surprise is from the entropy.

Letters in shapes: R rows, V vocabulary, C candidates, A alternatives, B named tokens, T places of a prompt chunk.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

from ..core.sampling_params import MAX_LOGPROBS, NO_CHOICE, NO_TOKEN
from .logits_processors import adjust, is_adjusted
from .state import SamplingState, TokenMemory

_CANDIDATES: Final = 64
"""How many of the likeliest tokens are looked at first."""

_ONE_BITS: Final = 0x3F800000
"""The bits of 1.0: the largest weight. Bits of non-negative floats are ordered as the floats are."""

_INFINITY_BITS: Final = 0x7F800000
"""The bits of the largest distance there is."""


class Logprobs(NamedTuple):
    """Log-probabilities of chosen tokens, of the likeliest alternatives, best first, and of tokens that the row names;
    zeros where nobody asked."""

    chosen: Float32[Array, "*rows"]
    top_ids: Int32[Array, "*rows A"]
    top: Float32[Array, "*rows A"]
    named: Float32[Array, "*rows B"]


class Sampled(NamedTuple):
    """The tokens of one step; `NO_CHOICE` where a row's masks leave none, `NO_TOKEN` where its numbers are broken."""

    tokens: Int32[Array, " R"]
    logprobs: Logprobs


def sample(
    logits: Float32[Array, "R V"],
    state: SamplingState,
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
) -> Sampled:
    """Chooses a token for every row.

    Args:
      logits: the model's own.
      state: what each row asks for.
      memory: of the row's tokens.
      positions: of the tokens to be chosen; with a row's seed they are all its randomness.
      active: rows whose result will be read; the others cost nothing and give anything.
    """
    allowed = adjust(logits, state, memory, positions, active)
    greedy = jax.lax.top_k(allowed, 1)[1][:, 0]  # a third of what argmax takes on a CPU
    random = active & (state.temperature > 0)
    drawn = _if(jnp.any(random), lambda: _draw(allowed, state, positions, random), lambda: greedy)
    tokens = jnp.where(random, drawn, greedy)
    wanted = jnp.any(active & state.wants_logprobs)
    return Sampled(
        _mark_unusable(tokens, _at(allowed, greedy)),
        _if(
            wanted,
            lambda: logprobs(logits, tokens, state.named_ids),
            lambda: no_logprobs(logits.shape[:-1], logits.shape[-1], state.named_ids.shape[-1]),
        ),
    )


def _mark_unusable(tokens: Int32[Array, " R"], best: Float32[Array, " R"]) -> Int32[Array, " R"]:
    """Replaces tokens that no rule has chosen, given each row's highest logit, which is NaN if any of them is."""
    tokens = jnp.where(jnp.isfinite(best), tokens, NO_TOKEN)
    return jnp.where(best == -jnp.inf, NO_CHOICE, tokens)


def logprobs(
    logits: Float32[Array, "*rows V"], chosen: Int32[Array, "*rows"], named: Int32[Array, "*rows B"]
) -> Logprobs:
    """log softmax at the chosen tokens, at the likeliest, and at those that are named (anything where none is)."""
    count = min(MAX_LOGPROBS, logits.shape[-1])
    top, top_ids = jax.lax.top_k(logits, count)
    norm = top[..., :1] + jnp.log(jnp.sum(jnp.exp(logits - top[..., :1]), axis=-1, keepdims=True))
    own, others = (jnp.take_along_axis(logits, ids, axis=-1) - norm for ids in (chosen[..., None], named))
    return Logprobs(own[..., 0], top_ids, top - norm, others)


def no_logprobs(rows: tuple[int, ...], vocab_size: int, num_named: int) -> Logprobs:
    """What stands where nobody asked."""
    alternatives = (*rows, min(MAX_LOGPROBS, vocab_size))
    return Logprobs(
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(alternatives, jnp.int32),
        jnp.zeros(alternatives, jnp.float32),
        jnp.zeros((*rows, num_named), jnp.float32),
    )


def needs_logits(state: SamplingState, positions: Int32[Array, " R"]) -> Bool[Array, " R"]:
    """Rows that ask for more than the likeliest token."""
    return (state.temperature > 0) | state.wants_logprobs | is_adjusted(state, positions)


def score(
    judge: Callable[[Array, Array], Logprobs],
    hidden: Float[Array, "T D"],
    targets: Int32[Array, " T"],
    block: int,
) -> Logprobs:
    """Log-probabilities of a chunk's next tokens, a block at a time, as logits of a whole chunk would be large.

    Args:
      judge: from `[block, D]` activations and `[block]` targets to their log-probabilities.
      hidden: activations after the final norm.
      targets: the token after each place.
      block: places per block; T is a multiple of it.
    """
    blocks = (hidden.reshape(-1, block, hidden.shape[-1]), targets.reshape(-1, block))
    scored: Logprobs = jax.lax.map(lambda item: judge(*item), blocks)
    flat: Logprobs = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), scored)
    return flat


def _if[Result](condition: Bool[Array, ""], yes: Callable[[], Result], no: Callable[[], Result]) -> Result:
    """`jax.lax.cond` whose branches close over what they need."""
    result: Result = jax.lax.cond(condition, yes, no)
    return result


def _draw(
    logits: Float32[Array, "R V"],
    state: SamplingState,
    positions: Int32[Array, " R"],
    random: Bool[Array, " R"],
) -> Int32[Array, " R"]:
    """Inverse transform sampling from softmax(logits / temperature), cut to the tokens that the row allows.

    Which of the two ways a row goes is its own matter, so that its token does not depend on its neighbours.
    """
    keys = jax.vmap(lambda seed, p: jax.random.fold_in(jax.random.wrap_key_data(seed), p))(state.seed, positions)
    uniform = jax.vmap(jax.random.uniform)(keys)
    state = state._replace(
        temperature=jnp.where(random, state.temperature, 1.0),
        top_k=jnp.where(random, jnp.minimum(state.top_k, logits.shape[1]), 0),
        top_p=jnp.where(random, state.top_p, 1.0),
        typical_p=jnp.where(random, state.typical_p, 1.0),
    )
    is_cut = random & ((state.top_k > 0) | (state.top_p < 1) | (state.min_p > 0)) & (state.typical_p >= 1)
    tokens, found = _if(
        jnp.any(is_cut),
        lambda: _draw_from_best(logits, state, uniform),
        lambda: (jnp.zeros(logits.shape[0], jnp.int32), jnp.zeros(logits.shape[0], jnp.bool)),
    )
    rest = random & ~(found & is_cut)
    return _if(
        jnp.any(rest), lambda: jnp.where(rest, _draw_from_all(logits, state, uniform, rest), tokens), lambda: tokens
    )


def _draw_from_best(
    logits: Float32[Array, "R V"], state: SamplingState, uniform: Float32[Array, " R"]
) -> tuple[Int32[Array, " R"], Bool[Array, " R"]]:
    """A token of each row's candidates, and whether every token that the row allows is one of them."""
    count = min(_CANDIDATES, logits.shape[1])
    best, ids = jax.lax.top_k(logits, count)
    temperature = state.temperature[:, None]
    weights = jnp.exp((best - best[:, :1]) / temperature)
    cut_k = jnp.where(state.top_k > count, 0.0, _at(weights, jnp.maximum(state.top_k, 1) - 1))
    cut_k = jnp.where(state.top_k > 0, cut_k, 0.0)
    kept = jnp.where(weights >= cut_k[:, None], weights, 0.0)
    total = _if(
        jnp.any((state.top_p < 1) & (state.top_k == 0)),
        lambda: jnp.sum(jnp.exp((logits - best[:, :1]) / temperature), axis=-1),
        lambda: jnp.ones_like(uniform),
    )
    total = jnp.where(state.top_k > 0, jnp.sum(kept, axis=-1), total)
    enough = jnp.cumsum(kept, axis=-1) >= (state.top_p * total)[:, None]
    cut_p = jnp.where(jnp.any(enough, axis=-1) & (state.top_p < 1), _at(weights, jnp.argmax(enough, axis=-1)), 0.0)
    cut = jnp.maximum(jnp.maximum(cut_k, cut_p), state.min_p)
    kept = jnp.where(weights >= cut[:, None], weights, 0.0)
    place, _ = _pick(kept, uniform * jnp.sum(kept, axis=-1))
    found = (state.top_k <= count) & ((cut > weights[:, -1]) | (count == logits.shape[1]))
    return _at(ids, place), found


def _draw_from_all(
    logits: Float32[Array, "R V"], state: SamplingState, uniform: Float32[Array, " R"], rows: Bool[Array, " R"]
) -> Int32[Array, " R"]:
    """A token of the whole vocabulary; of rows that are not named, any."""
    below_best = logits - jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(below_best / state.temperature[:, None])  # of the best exactly 1
    top_k, top_p = jnp.where(rows, state.top_k, 0), jnp.where(rows, state.top_p, 1.0)
    weights = _if(jnp.any(top_k > 0), lambda: _keep_top_k(weights, top_k), lambda: weights)
    weights = _if(jnp.any(top_p < 1), lambda: _keep_top_p(weights, top_p), lambda: weights)
    weights = jnp.where(weights >= state.min_p[:, None], weights, 0.0)
    typical_p = jnp.where(rows, state.typical_p, 1.0)
    weights = _if(jnp.any(typical_p < 1), lambda: _keep_typical(weights, typical_p), lambda: weights)
    return _invert(weights, uniform)


def _at(x: Shaped[Array, "R C"], column: Int32[Array, " R"]) -> Shaped[Array, " R"]:
    """One element of every row."""
    return jnp.take_along_axis(x, column[:, None], axis=1)[:, 0]


def _keep_top_k(weights: Float32[Array, "R V"], k: Int32[Array, " R"]) -> Float32[Array, "R V"]:
    """The k largest weights and ties of the last; all where k is 0."""
    full = jnp.where(k > 0, jnp.minimum(k, weights.shape[1]), weights.shape[1])
    return _cut(weights, lambda kept: jnp.sum(kept, axis=-1) >= full)


def _keep_top_p(weights: Float32[Array, "R V"], p: Float32[Array, " R"]) -> Float32[Array, "R V"]:
    """The smallest set of largest weights whose sum reaches p of the whole, and ties of the last."""
    cut = _cut(weights, _reaches(weights, p))
    return jnp.where(p[:, None] < 1, cut, weights)


def _keep_typical(weights: Float32[Array, "R V"], p: Float32[Array, " R"]) -> Float32[Array, "R V"]:
    """The tokens whose surprise is nearest to the entropy, as many as reach p of the whole, and ties of the last."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    surprise = jnp.where(weights > 0, jnp.log(total) - jnp.log(weights), jnp.inf)
    entropy = jnp.sum(jnp.where(weights > 0, weights * surprise, 0.0), axis=-1, keepdims=True) / total
    distance = jnp.where(weights > 0, jnp.abs(surprise - entropy), jnp.inf)
    nearness = _INFINITY_BITS - jax.lax.bitcast_convert_type(distance, jnp.int32)
    threshold = _threshold(nearness, _INFINITY_BITS, _reaches(weights, p))
    kept = nearness >= jnp.minimum(threshold, jnp.max(nearness, axis=-1))[:, None]  # p may be rounded to 0
    return jnp.where((p[:, None] < 1) & ~kept, 0.0, weights)


def _reaches(
    weights: Float32[Array, "R V"], p: Float32[Array, " R"]
) -> Callable[[Bool[Array, "R V"]], Bool[Array, " R"]]:
    """Whether the weights that are kept sum to p of the whole."""
    mass = p * jnp.sum(weights, axis=-1)
    return lambda kept: jnp.sum(jnp.where(kept, weights, 0.0), axis=-1) >= mass


def _cut(
    weights: Float32[Array, "R V"], is_enough: Callable[[Bool[Array, "R V"]], Bool[Array, " R"]]
) -> Float32[Array, "R V"]:
    """Zeroes the weights below the highest threshold that keeps enough."""
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    return jnp.where(bits >= _threshold(bits, _ONE_BITS, is_enough)[:, None], weights, 0.0)


def _threshold(
    bits: Int32[Array, "R V"], most: int, is_enough: Callable[[Bool[Array, "R V"]], Bool[Array, " R"]]
) -> Int32[Array, " R"]:
    """The highest number from 0 to `most` such that enough bits are no lower; found by bisection."""

    def halve(_: Int32[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # low keeps enough, high does not
        middle = low + (high - low) // 2
        enough = is_enough(bits >= middle[:, None])
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low: Int32[Array, " R"] = jnp.zeros(bits.shape[0], jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, most + 1)))
    return low


def _invert(weights: Float32[Array, "R V"], uniform: Float32[Array, " R"]) -> Int32[Array, " R"]:
    """The token in whose stretch of the summed weights `uniform` of the whole falls; first the lane, then in it."""
    rows, vocab = weights.shape
    lane = 128
    lanes = jnp.pad(weights, ((0, 0), (0, -vocab % lane))).reshape(rows, -1, lane)
    sums = jnp.sum(lanes, axis=-1)
    index, left = _pick(sums, uniform * jnp.sum(sums, axis=-1))
    within, _ = _pick(jnp.take_along_axis(lanes, index[:, None, None], axis=1)[:, 0], left)
    return jnp.minimum(index * lane + within, vocab - 1)  # of a row without weights, which is marked in `sample`


def _pick(
    weights: Float32[Array, "R K"], target: Float32[Array, " R"]
) -> tuple[Int32[Array, " R"], Float32[Array, " R"]]:
    """The first index whose running sum exceeds the target, never one of weight 0, and what is left of the target."""
    running = jnp.cumsum(weights, axis=-1)
    hit = (running > target[:, None]) & (weights > 0)
    last = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)  # where rounding leaves the target over
    index = jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1), last)
    before = jnp.take_along_axis(running - weights, index[:, None], axis=-1)[:, 0]
    return index.astype(jnp.int32), target - before
