"""Steps of the device programs, as functions of arrays: decode, prefill, and copies between slots.

On a mesh these are one shard's functions, run under `jax.shard_map`. Inputs from the host are replicated, and so are
results for the host.

Letters in shapes: R rows of a pool or a batch, T tokens of a chunk, N tokens of the largest prefill batch, S data
shards, D width, K tokens per row of one dispatch, W words of a token mask.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Shaped, UInt32

from ..model.griffin import Griffin
from ..model.sharding import Collectives
from ..model.slot_states import SlotStates
from ..model.speculation import DraftState, new_draft_state, record
from ..model.state import BlockStates, ModelState, RowArrays, StateLayout, state_layout
from ..sampling.sampler import (
    Logprobs,
    RowFlags,
    RowInts,
    Sampled,
    SamplingRows,
    TokenMemory,
    is_penalized,
    logprobs,
    needs_logits,
    no_logprobs,
    no_tokens,
    record_tokens,
    sample,
    score,
)
from ..types.config import MAX_PREFILL_ROWS, PREFILL_BLOCK
from ..types.sampling_params import MAX_LOGPROBS, NO_TOKEN, SamplingState


class SlotState(NamedTuple):
    """Decoding state of each slot, without the model's state.

    Attributes:
      tokens: Last token, which the next decode step processes.
      positions: Position of that token.
      goes_on: Whether the request has not ended; after its last token a slot's state stays as it is.
      sampling: Sampling parameters of the request, set after prefill.
      memory: Tokens that penalties and masks refer to.
      drafts: What decides on drafted tokens; None without speculation.
    """

    tokens: RowInts
    positions: RowInts
    goes_on: RowFlags
    sampling: SamplingState[Array]
    memory: TokenMemory
    drafts: DraftState | None = None


class StatePool(NamedTuple):
    """All slots, one row each; donated to every step and updated in place.

    Attributes:
      states: The model's states of all slots.
      slots: Decoding state of all slots.
      ends: Activations of the last token of each slot's last prefilled chunk, from which a first token is sampled.
    """

    states: SlotStates
    slots: SlotState
    ends: Float[Array, "R D"]


class PrefillResult(NamedTuple):
    """Result of a prefill step, or of one layer slice of it.

    Attributes:
      last: Activations of each row's last token, `MAX_PREFILL_ROWS` rows per data shard.
      block_states: States of the slice's layers at the chunks' block boundaries.
    """

    last: Float[Array, "Rmax D"]
    block_states: BlockStates


class PrefillInput(NamedTuple):
    """A prefill batch, with the same number of rows for each data shard, one shard after the other.

    Padding rows have length 0 and a slot past the pool.

    Attributes:
      tokens: Tokens of each chunk.
      starts: Number of prompt tokens before each chunk.
      lengths: Number of tokens in each chunk.
      slots: Slot of each chunk.
    """

    tokens: Int32[Array, "R T"]
    starts: RowInts
    lengths: RowInts
    slots: RowInts


class FirstTokenInput(NamedTuple):
    """Prompts that have ended, and their forks. Padding rows have a slot past the pool.

    Attributes:
      slots: Slot of each prompt.
      lengths: Length of each prompt, which is the position of the token to sample.
      sampling: Sampling parameters of the requests.
      in_prompt, allowed: See `TokenMemory`.
      history: See `DraftState`; without the token to sample.
    """

    slots: RowInts
    lengths: RowInts
    sampling: SamplingState[Array]
    in_prompt: UInt32[Array, "R W"]
    allowed: UInt32[Array, "R W"]
    history: Int32[Array, "R H"] | None = None


class ReplayInput(NamedTuple):
    """Slots that continue after a token generated before. Padding rows have a slot past the pool.

    Attributes:
      tokens: Last token of each, which the next decode step processes.
      positions: Position of that token.
      sampling: Sampling parameters of the requests.
      memory: Tokens that penalties and masks refer to.
      history: See `DraftState`.
    """

    slots: RowInts
    tokens: RowInts
    positions: RowInts
    sampling: SamplingState[Array]
    memory: TokenMemory
    history: Int32[Array, "R H"] | None = None


def decode_step(
    model: Griffin, max_steps: int, pool: StatePool, active: RowFlags, steps: Int32[Array, ""]
) -> tuple[StatePool, Sampled]:
    """Generates tokens in the active slots among the first R; the others' state stays as it is, bit for bit.

    On a mesh these are the first slots of each device, one device after the other.

    Args:
      model: The model.
      max_steps: K, the maximum of `steps`.
      pool: All slots.
      active: Whether each slot of the first R gets tokens; R is one of `Served.decode_rows`.
      steps: Number of tokens per row. A row that ends earlier stays as its last token left it.

    Returns:
      The pool, and tokens `[K, R]`, of which those past a row's last one are meaningless.
    """
    active = model.collectives.local_slots(active)
    slots = jax.tree.map(lambda x: model.collectives.first_rows(x, active.shape[0]), pool.slots)
    shape = (max_steps, active.shape[0])
    results = Sampled(jnp.zeros(shape, jnp.int32), no_logprobs(shape, model.config.vocab_size, MAX_LOGPROBS))

    def is_wanted(carry: _Carry) -> Bool[Array, ""]:
        return (carry.done < steps) & jnp.any(active & carry.slots.goes_on)

    def step(carry: _Carry) -> _Carry:
        layers, slots, result = decode_once(model, carry.layers, carry.slots, active)
        results = jax.tree.map(lambda all, one: all.at[carry.done].set(one), carry.results, result)
        return _Carry(carry.done + 1, layers, slots, results)

    carry = _Carry(jnp.zeros((), jnp.int32), pool.states.state, slots, results)
    carry = step(carry) if max_steps == 1 else jax.lax.while_loop(is_wanted, step, carry)
    states = pool.states.map(lambda _: carry.layers)
    pool = pool._replace(states=states, slots=with_progress(pool.slots, carry.slots, model.collectives))
    return pool, model.collectives.all_gather_slots(carry.results, axis=1)


def with_progress(slots: SlotState, first: SlotState, shards: Collectives) -> SlotState:
    """Returns all slots, with the fields that decoding changes taken from the first ones; the others are not copied."""
    put = shards.with_first_rows
    return slots._replace(
        tokens=put(slots.tokens, first.tokens),
        positions=put(slots.positions, first.positions),
        goes_on=put(slots.goes_on, first.goes_on),
        memory=slots.memory._replace(recent=put(slots.memory.recent, first.memory.recent)),
        drafts=jax.tree.map(put, slots.drafts, first.drafts),
    )


class _Carry(NamedTuple):
    """State between two decode steps of one dispatch."""

    done: Int32[Array, ""]
    layers: ModelState
    slots: SlotState
    results: Sampled


def decode_once(
    model: Griffin, layers: ModelState, slots: SlotState, active: RowFlags
) -> tuple[ModelState, SlotState, Sampled]:
    """Generates a token in the active rows whose requests are unfinished."""
    live = active & slots.goes_on
    tokens = jnp.where(live, slots.tokens, 0)  # so that idle rows are equal, of which native products compute one
    hidden, layers = model(tokens[:, None], jnp.where(live, slots.positions, -1)[:, None], layers, PREFILL_BLOCK)
    positions = slots.positions + live
    result = mark_broken(sample_or_greedy(model, hidden[:, 0], slots, live), hidden[:, 0])
    tokens = jnp.where(live, result.tokens, slots.tokens)
    goes_on = slots.goes_on & ~(live & is_last(tokens, positions, slots.sampling))
    recent = record_tokens(slots.memory.recent, tokens, positions, live & is_penalized(slots.sampling))
    memory = slots.memory._replace(recent=recent)
    drafts = slots.drafts
    if drafts is not None:
        drafts = drafts._replace(history=record(drafts.history, tokens[:, None], positions, live.astype(jnp.int32)))
    return layers, SlotState(tokens, positions, goes_on, slots.sampling, memory, drafts), result


def sample_or_greedy(model: Griffin, hidden: Float[Array, "R D"], slots: SlotState, live: RowFlags) -> Sampled:
    """Samples, or takes the argmax without the logits if no row needs more and the model gains from that."""
    rows = SamplingRows(slots.sampling, slots.memory, slots.positions + 1, live)
    sampled = partial(_sample, model, hidden, rows)
    if not model.skips_logits:
        return sampled()
    is_logits_needed = model.collectives.any_device(live & needs_logits(rows))
    return jax.lax.cond(is_logits_needed, sampled, partial(_greedy_sample, model, hidden))


def _sample(model: Griffin, hidden: Float[Array, "R D"], rows: SamplingRows) -> Sampled:
    """Samples each row on one of the model shards."""
    rows = model.collectives.local_rows(rows)
    chosen = sample(model.logits(hidden), rows, model.platform.kernels)
    return model.collectives.all_gather_rows(chosen)


def _greedy_sample(model: Griffin, hidden: Float[Array, "R D"]) -> Sampled:
    """Returns the argmax of each row, without log-probabilities."""
    tokens = model.argmax(hidden)
    return Sampled(tokens, no_logprobs(tokens.shape, model.config.vocab_size, MAX_LOGPROBS))


def mark_broken(sampled: Sampled, hidden: Float[Array, "R D"]) -> Sampled:
    """Replaces the token by `NO_TOKEN` in rows with NaN activations.

    Activations are checked after the final norm. A fault in any layer or in a row's state shows there, at a hundredth
    of the cost of checking the logits.
    """
    is_broken = jnp.any(jnp.isnan(hidden), axis=-1)
    return sampled._replace(tokens=jnp.where(is_broken, NO_TOKEN, sampled.tokens))


def is_last(tokens: RowInts, positions: RowInts, sampling: SamplingState[Array]) -> RowFlags:
    """Returns whether each request ends with this token: at a stop id, at its limit, or for lack of a token."""
    is_stop = jnp.any(tokens[:, None] == sampling.stop_ids, axis=-1) | (tokens < 0)
    return is_stop | (positions >= sampling.last_position)


def prefill_step(
    model: Griffin, layers: range, pool: StatePool, hidden: Float[Array, "N D"], inputs: PrefillInput
) -> tuple[StatePool, Float[Array, "N D"], PrefillResult]:
    """Prefills one chunk per row, or runs a slice of the layers on it, with the bits of a single step.

    Args:
      model: The model.
      layers: Layers that run.
      pool: All slots.
      hidden: Activations of all tokens of this data shard's rows after the layers before the slice, with room for the
        largest batch; the first layer does not read them.
      inputs: The chunks.

    Returns:
      The pool, the activations after the slice, and the result. Activations before the model's last layer are inputs
      of the next layer.
    """
    shards, inputs = model.collectives, model.collectives.local_slots(inputs)
    tokens = inputs.tokens
    x = hidden[: tokens.size].reshape(*tokens.shape, -1) if layers.start else model.embed(tokens)
    steps = jnp.arange(tokens.shape[1])
    positions = jnp.where(steps < inputs.lengths[:, None], inputs.starts[:, None] + steps, -1)
    states = pool.states.layers(layers)
    state = states.gather(inputs.slots, inputs.starts == 0)
    if model.platform.has_state_barrier:
        state = jax.lax.optimization_barrier(state)
    x, state, block_states = model.prefill(x, positions, state, PREFILL_BLOCK, layers)
    last = jnp.take_along_axis(x, jnp.maximum(inputs.lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    ends = _scatter(pool.ends, inputs.slots, last, shards)
    last = jnp.pad(last, ((0, MAX_PREFILL_ROWS - last.shape[0]), (0, 0)))
    layout = state_layout(model.config, model.dtype.name)
    recurrent = tuple(
        shards.all_gather_channels(x, array.shape[-1]) if array.is_sharded else x
        for array, x in zip(layout.recurrent, block_states.recurrent, strict=True)
    )
    states = pool.states.with_layers(layers, states.scatter(inputs.slots, state))
    result: PrefillResult = shards.all_gather_slots(PrefillResult(last, BlockStates(recurrent, block_states.window)))
    padded = jnp.pad(x.reshape(tokens.size, -1), ((0, hidden.shape[0] - tokens.size), (0, 0)))
    return pool._replace(states=states, ends=ends), padded, result


def first_token_step(model: Griffin, pool: StatePool, inputs: FirstTokenInput) -> tuple[StatePool, Sampled]:
    """Samples the token after each prompt and makes its slot ready to decode."""
    slots, sampling = inputs.slots, inputs.sampling
    active = slots < pool.slots.tokens.shape[0] * model.collectives.data
    memory = TokenMemory(inputs.in_prompt, inputs.allowed, no_tokens(slots.shape[0]))
    hidden = _gather(pool.ends, slots, model.collectives)
    sampled = mark_broken(_sample(model, hidden, SamplingRows(sampling, memory, inputs.lengths, active)), hidden)
    goes_on = ~is_last(sampled.tokens, inputs.lengths, sampling)
    recent = record_tokens(memory.recent, sampled.tokens, inputs.lengths, is_penalized(sampling))
    drafts = None
    if inputs.history is not None:
        one = jnp.ones_like(slots)
        drafts = new_draft_state(record(inputs.history, sampled.tokens[:, None], inputs.lengths, one))
    new = SlotState(sampled.tokens, inputs.lengths, goes_on, sampling, memory._replace(recent=recent), drafts)
    return pool._replace(slots=_scatter(pool.slots, slots, new, model.collectives)), sampled


def replay_step(shards: Collectives, pool: StatePool, inputs: ReplayInput) -> StatePool:
    """Sets the decoding state of some slots; their model state is that of the tokens before."""
    goes_on = jnp.ones(inputs.slots.shape, jnp.bool)
    drafts = None if inputs.history is None else new_draft_state(inputs.history)
    new = SlotState(inputs.tokens, inputs.positions, goes_on, inputs.sampling, inputs.memory, drafts)
    return pool._replace(slots=_scatter(pool.slots, inputs.slots, new, shards))


def score_step(
    model: Griffin, hidden: Float[Array, "N D"], targets: Int32[Array, "S N"], count: Int32[Array, ""]
) -> Logprobs:
    """Returns log-probabilities `[S, N]` of the tokens that follow each token of a prefill batch of one row.

    Args:
      model: The model.
      hidden: Activations of this data shard's row; see `prefill_step`.
      targets: Following tokens, of each data shard.
      count: Number of blocks with tokens; the results of later ones are zeros.
    """
    shards = model.collectives

    def score_block(hidden: Float[Array, "T D"], targets: Int32[Array, " T"]) -> Logprobs:
        padding = -PREFILL_BLOCK % shards.model  # every model shard scores as many
        hidden, own = jnp.pad(hidden, ((0, padding), (0, 0))), shards.local_rows(jnp.pad(targets, (0, padding)))
        named, kernels = jnp.zeros((own.shape[0], 0), jnp.int32), model.platform.kernels
        scored = shards.all_gather_rows(logprobs(model.logits(hidden), own, named, kernels))
        return jax.tree.map(lambda x: x[:PREFILL_BLOCK], scored)

    scored = score(score_block, hidden, shards.local_slots(targets)[0], count, PREFILL_BLOCK, model.config.vocab_size)
    return shards.all_gather_slots(jax.tree.map(lambda x: x[None], scored))


def copy_step(shards: Collectives, pool: StatePool, sources: RowInts, targets: RowInts) -> StatePool:
    """Copies slots, model state and decoding state, onto others; a target past the pool is skipped."""
    rows = pool.slots, pool.ends
    slots, ends = _scatter(rows, targets, _gather(rows, sources, shards), shards)
    return StatePool(pool.states.copy(sources, targets), slots, ends)


def restore_step(
    layout: StateLayout,
    shards: Collectives,
    pool: StatePool,
    slots: Int32[Array, " 1"],
    end: Float[Array, "1 D"],
    *arrays: Shaped[Array, "..."],
) -> StatePool:
    """Scatters a snapshot's state, as `read_step` returns it, and the activation of its last token into a slot."""
    states = pool.states.restore(layout, slots, arrays)
    return pool._replace(states=states, ends=_scatter(pool.ends, slots, end, shards))


def read_step(layout: StateLayout, pool: StatePool, slots: Int32[Array, " 1"]) -> RowArrays:
    """Gathers a slot's state, as `restore_step` takes it."""
    return pool.states.read(layout, slots)


def mask_step(shards: Collectives, pool: StatePool, slots: RowInts, allowed: UInt32[Array, "R W"]) -> StatePool:
    """Sets the token masks of some slots; a slot past the pool is skipped."""
    memory = pool.slots.memory
    memory = memory._replace(allowed=_scatter(memory.allowed, slots, allowed, shards))
    return pool._replace(slots=pool.slots._replace(memory=memory))


def _scatter[Tree](old: Tree, slots: RowInts, new: Tree, shards: Collectives) -> Tree:
    """Replaces rows of slots, if this data shard holds them."""

    def scatter(old: Array, new: Array) -> Array:
        local = slots - shards.slot_offset(old.shape[0])
        return old.at[jnp.where(local < 0, old.shape[0], local)].set(new, mode="drop")

    return jax.tree.map(scatter, old, new)


def _gather[Tree](tree: Tree, slots: RowInts, shards: Collectives) -> Tree:
    """Returns rows of slots of any data shard."""
    if shards.data == 1:
        return jax.tree.map(lambda x: x[slots], tree)

    def gather(x: Array) -> Array:
        local = slots - shards.slot_offset(x.shape[0])
        is_here = ((local >= 0) & (local < x.shape[0])).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(is_here, x[jnp.clip(local, 0, x.shape[0] - 1)], jnp.zeros((), x.dtype))

    return shards.psum_slots(jax.tree.map(gather, tree))
