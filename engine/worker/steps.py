"""The device's programs, as functions of arrays: what a decode, a prefill and the moves between slots compute.

Where the model and its slots are cut into shards, these are one shard's functions, to be run under `jax.shard_map`:
what comes from the host is there whole for each of them, and so is what goes back to it.

Letters in shapes: R rows of a pool or a batch, T tokens of a chunk, D width, K tokens per row of one dispatch, W words
of a token mask.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from ..core.config import MAX_PREFILL_ROWS, PREFILL_BLOCK
from ..core.sampling_limits import MAX_LOGPROBS, NO_TOKEN
from ..core.sampling_params import SamplingState
from ..model.collectives import Collectives
from ..model.griffin import Griffin, Params
from ..model.state import (
    BlockStates,
    ModelState,
    as_arrays,
    as_state,
    copy_rows,
    gather_rows,
    join,
    num_rows,
    scatter_rows,
    split,
)
from ..sampling.logits_processors import is_penalized
from ..sampling.logprobs import Logprobs, logprobs, no_logprobs, score
from ..sampling.sampler import Sampled, needs_logits, sample
from ..sampling.state import TokenMemory, no_tokens, record_tokens

type Graph = nnx.GraphDef[Griffin]


class SlotState(NamedTuple):
    """What is known of each slot beside the model's state.

    Attributes:
      tokens: the last one, which the next decode step reads.
      positions: that token's position.
      goes_on: false from the token on that ends the sequence: its state then stays as it is.
      sampling: what its request asks for; set when its prompt has been read.
      memory: of its tokens.
    """

    tokens: Int32[Array, " R"]
    positions: Int32[Array, " R"]
    goes_on: Bool[Array, " R"]
    sampling: SamplingState[Array]
    memory: TokenMemory


class StatePool(NamedTuple):
    """All slots, one row each; donated to every step and updated in place.

    Attributes:
      groups: the model's state, of slots that follow one another.
      slots: of all of them.
    """

    groups: tuple[ModelState, ...]
    slots: SlotState


class PrefillInput(NamedTuple):
    """A prefill batch as arrays, with as many rows for each data shard, one shard's behind the other's. Rows of padding
    have length 0 and a slot past the pool.

    Attributes:
      tokens: of the chunk.
      starts, lengths: the chunk's place in the prompt.
      slots: rows of the pool.
    """

    tokens: Int32[Array, "R T"]
    starts: Int32[Array, " R"]
    lengths: Int32[Array, " R"]
    slots: Int32[Array, " R"]


class FirstTokenInput(NamedTuple):
    """Prompts that end in a prefill batch, and forks of them. Rows of padding have a slot past the pool.

    Attributes:
      rows: of the prefill batch.
      slots: rows of the pool.
      lengths: of the prompts, so also the positions of the tokens to be sampled.
      sampling: what the requests ask for.
      in_prompt, allowed: see `TokenMemory`.
    """

    rows: Int32[Array, " R"]
    slots: Int32[Array, " R"]
    lengths: Int32[Array, " R"]
    sampling: SamplingState[Array]
    in_prompt: UInt32[Array, "R W"]
    allowed: UInt32[Array, "R W"]


def decode_step(
    graph: Graph,
    most: int,
    params: Params,
    pool: StatePool,
    active: Bool[Array, " R"],
    steps: Int32[Array, ""],
) -> tuple[StatePool, Sampled]:
    """More tokens for the active ones of the first R slots; the others' state stays as it is, bit for bit.

    Args:
      graph, params: the model.
      most: K, the bound of `steps`.
      pool: all slots.
      active: of the first R, which are whole groups.
      steps: how many tokens; a row that ends before stays as its last token left it.

    Returns:
      The pool, and `[K, R]` tokens, of which those past a row's last one mean nothing.
    """
    model = nnx.merge(graph, params)
    active = model.collectives.local_slots(active)
    sizes = _sizes_of_first(pool, active.shape[0])
    layers = join(pool.groups[: len(sizes)])
    slots = jax.tree.map(lambda x: x[: active.shape[0]], pool.slots)
    shape = (most, active.shape[0])
    results = Sampled(jnp.zeros(shape, jnp.int32), no_logprobs(shape, model.config.vocab_size, MAX_LOGPROBS))

    def is_wanted(carry: _Carry) -> Bool[Array, ""]:
        return (carry.done < steps) & jnp.any(active & carry.slots.goes_on)

    def step(carry: _Carry) -> _Carry:
        layers, slots, result = _decode_once(model, carry.layers, carry.slots, active)
        results = jax.tree.map(lambda all, one: all.at[carry.done].set(one), carry.results, result)
        return _Carry(carry.done + 1, layers, slots, results)

    carry = _Carry(jnp.zeros((), jnp.int32), layers, slots, results)
    carry = step(carry) if most == 1 else jax.lax.while_loop(is_wanted, step, carry)
    groups = (*split(carry.layers, sizes), *pool.groups[len(sizes) :])
    return StatePool(groups, _with_progress(pool.slots, carry.slots)), model.collectives.all_gather_slots(
        carry.results, axis=1
    )


def _with_progress(slots: SlotState, first: SlotState) -> SlotState:
    """All slots, with what decoding has changed of the first so many; the rest is not even copied."""

    def put(old: Array, new: Array) -> Array:
        return new if old.shape == new.shape else old.at[: new.shape[0]].set(new)

    return slots._replace(
        tokens=put(slots.tokens, first.tokens),
        positions=put(slots.positions, first.positions),
        goes_on=put(slots.goes_on, first.goes_on),
        memory=slots.memory._replace(recent=put(slots.memory.recent, first.memory.recent)),
    )


class _Carry(NamedTuple):
    """What a decode step hands to the next one of the same dispatch."""

    done: Int32[Array, ""]
    layers: ModelState
    slots: SlotState
    results: Sampled


def _sizes_of_first(pool: StatePool, rows: int) -> list[int]:
    """How many rows each of the groups has that together have so many."""
    if len(pool.groups) == 1:
        return [rows]
    sizes: list[int] = []
    while sum(sizes) < rows:
        sizes.append(num_rows(pool.groups[len(sizes)]))
    return sizes


def _decode_once(
    model: Griffin, layers: ModelState, slots: SlotState, active: Bool[Array, " R"]
) -> tuple[ModelState, SlotState, Sampled]:
    live = active & slots.goes_on
    hidden, layers = model(slots.tokens[:, None], jnp.where(live, slots.positions, -1)[:, None], layers, PREFILL_BLOCK)
    positions = slots.positions + live
    result = mark_broken(sample_or_greedy(model, hidden[:, 0], slots, live), hidden[:, 0])
    tokens = jnp.where(live, result.tokens, slots.tokens)
    goes_on = slots.goes_on & ~(live & _is_last(tokens, positions, slots.sampling))
    recent = record_tokens(slots.memory.recent, tokens, positions, live & is_penalized(slots.sampling))
    memory = slots.memory._replace(recent=recent)
    return layers, SlotState(tokens, positions, goes_on, slots.sampling, memory), result


def sample_or_greedy(model: Griffin, hidden: Float[Array, "R D"], slots: SlotState, live: Bool[Array, " R"]) -> Sampled:
    """`sample`, spared the logits on accelerators where every row wants the argmax and nothing else."""
    positions = slots.positions + 1

    def sampled() -> Sampled:
        return _sample(model, hidden, slots.sampling, slots.memory, positions, live)

    if not model.platform.skips_logits:
        return sampled()
    greedy = partial(greedy_sample, model, hidden)
    is_asked_for_more = model.collectives.any_device(live & needs_logits(slots.sampling, positions))
    result: Sampled = jax.lax.cond(is_asked_for_more, sampled, greedy)
    return result


def _sample(
    model: Griffin,
    hidden: Float[Array, "R D"],
    sampling: SamplingState[Array],
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
) -> Sampled:
    """Each of the model's shards samples some of the rows."""
    own = model.collectives.local_rows((sampling, memory, positions, active))
    sampled: Sampled = model.collectives.all_gather_rows(sample(model.logits(hidden), *own))
    return sampled


def greedy_sample(model: Griffin, hidden: Float[Array, "R D"]) -> Sampled:
    """Returns the argmax of each row, without log-probabilities."""
    tokens = model.argmax(hidden)
    return Sampled(tokens, no_logprobs(tokens.shape, model.config.vocab_size, MAX_LOGPROBS))


def mark_broken(sampled: Sampled, hidden: Float[Array, "R D"]) -> Sampled:
    """Puts `NO_TOKEN` where a row's activations are not numbers. They are looked at behind the last norm: whatever goes
    wrong in a layer or in a row's state shows there, at a hundredth of the price of the logits."""
    is_broken = jnp.any(jnp.isnan(hidden), axis=-1)
    return sampled._replace(tokens=jnp.where(is_broken, NO_TOKEN, sampled.tokens))


def _is_last(
    tokens: Int32[Array, " R"], positions: Int32[Array, " R"], sampling: SamplingState[Array]
) -> Bool[Array, " R"]:
    """Whether a sequence ends with this token: by a stop id, by its limit, or as there is none."""
    is_stop = jnp.any(tokens[:, None] == sampling.stop_ids, axis=-1) | (tokens < 0)
    return is_stop | (positions >= sampling.last_position)


def prefill_step(
    graph: Graph, params: Params, pool: StatePool, inputs: PrefillInput, layers: range | None = None
) -> tuple[StatePool, Float[Array, "R T D"], Float[Array, "Rmax D"], BlockStates]:
    """Reads a chunk of prompt per row into its slot.

    Args:
      graph, params: the model.
      pool: all slots.
      inputs: the chunks.
      layers: the first ones, where those behind them have steps of their own; None is all.

    Returns:
      The pool, the activations of all tokens of this data shard's rows, those of each row's last one, for
      `MAX_PREFILL_ROWS` rows of each data shard, and what the chunks add to the state of these layers. Before the
      model's last layer, activations are what the next one takes.
    """
    model = nnx.merge(graph, params)
    inputs = model.collectives.local_slots(inputs)
    return _read(model, layers or range(model.config.depth), pool, model.embed(inputs.tokens), inputs)


def later_prefill_step(
    graph: Graph, layers: range, params: Params, pool: StatePool, hidden: Float[Array, "R T D"], inputs: PrefillInput
) -> tuple[StatePool, Float[Array, "R T D"], Float[Array, "Rmax D"], BlockStates]:
    """Goes on with the layers behind those of a `prefill_step`, as if they were one step.

    Args:
      hidden: what the layers before have made of the chunks.
    """
    model = nnx.merge(graph, params)
    return _read(model, layers, pool, hidden, model.collectives.local_slots(inputs))


def _read(
    model: Griffin, layers: range, pool: StatePool, x: Float[Array, "R T D"], inputs: PrefillInput
) -> tuple[StatePool, Float[Array, "R T D"], Float[Array, "Rmax D"], BlockStates]:
    shards = model.collectives
    steps = jnp.arange(inputs.tokens.shape[1])
    positions = jnp.where(steps < inputs.lengths[:, None], inputs.starts[:, None] + steps, -1)
    groups = tuple(group[layers.start : layers.stop] for group in pool.groups)
    state = gather_rows(groups, inputs.slots, inputs.starts == 0, shards)
    if model.platform.has_state_barrier:
        state = jax.lax.optimization_barrier(state)
    hidden, state, block_states = model.read(x, positions, state, PREFILL_BLOCK, layers)
    last = jnp.take_along_axis(hidden, jnp.maximum(inputs.lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    last = jnp.pad(last, ((0, MAX_PREFILL_ROWS - last.shape[0]), (0, 0)))
    h, conv = (shards.all_gather_channels(x, model.config.lru_width) for x in (block_states.h, block_states.conv))
    block_states = BlockStates(h, conv, block_states.window)
    groups = scatter_rows(groups, inputs.slots, state, shards)
    whole = zip(pool.groups, groups, strict=True)
    pool = pool._replace(groups=tuple((*old[: layers.start], *new, *old[layers.stop :]) for old, new in whole))
    return pool, hidden, *shards.all_gather_slots((last, block_states))


def first_token_step(
    graph: Graph, params: Params, pool: StatePool, hidden: Float[Array, "R D"], inputs: FirstTokenInput
) -> tuple[StatePool, Sampled]:
    """Samples the token after each prompt and makes its slot ready to decode."""
    model = nnx.merge(graph, params)
    slots, sampling = inputs.slots, inputs.sampling
    active = slots < pool.slots.tokens.shape[0] * model.collectives.data
    memory = TokenMemory(inputs.in_prompt, inputs.allowed, no_tokens(slots.shape[0]))
    hidden = hidden[inputs.rows]
    sampled = mark_broken(_sample(model, hidden, sampling, memory, inputs.lengths, active), hidden)
    goes_on = ~_is_last(sampled.tokens, inputs.lengths, sampling)
    recent = record_tokens(memory.recent, sampled.tokens, inputs.lengths, is_penalized(sampling))
    new = SlotState(sampled.tokens, inputs.lengths, goes_on, sampling, memory._replace(recent=recent))
    return pool._replace(slots=_put(pool.slots, slots, new, model.collectives)), sampled


def score_step(graph: Graph, params: Params, hidden: Float[Array, "R T D"], targets: Int32[Array, "R T"]) -> Logprobs:
    """Log-probabilities of the tokens that follow each token of a prefill batch, `[R, T]` as `targets`; `hidden` has a
    data shard's own rows of these."""
    model: Griffin = nnx.merge(graph, params)
    shards, targets = model.collectives, model.collectives.local_slots(targets)

    def judge(hidden: Float[Array, "T D"], targets: Int32[Array, " T"]) -> Logprobs:
        lacking = -PREFILL_BLOCK % shards.model  # so that each of the model's shards judges as many
        hidden, own = jnp.pad(hidden, ((0, lacking), (0, 0))), shards.local_rows(jnp.pad(targets, (0, lacking)))
        judged = shards.all_gather_rows(logprobs(model.logits(hidden), own, jnp.zeros((own.shape[0], 0), jnp.int32)))
        first: Logprobs = jax.tree.map(lambda x: x[:PREFILL_BLOCK], judged)
        return first

    flat = score(judge, hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), PREFILL_BLOCK)
    shaped = jax.tree.map(lambda x: x.reshape(*targets.shape, *x.shape[1:]), flat)
    everywhere: Logprobs = shards.all_gather_slots(shaped)
    return everywhere


def copy_step(
    shards: Collectives, pool: StatePool, sources: Int32[Array, " R"], targets: Int32[Array, " R"]
) -> StatePool:
    """Copies slots with all that belongs to them onto others; a target past the pool is left out."""
    groups = copy_rows(pool.groups, sources, targets, shards)
    return StatePool(groups, _put(pool.slots, targets, _take(pool.slots, sources, shards), shards))


def restore_step(
    shards: Collectives,
    pool: StatePool,
    slots: Int32[Array, " 1"],
    h: Float32[Array, "L E"],
    conv: Float[Array, "L K1 E"],
    ring: Float[Array, "W A 2 d"],
) -> StatePool:
    """Puts a remembered state into a slot; see `as_state`."""
    state = as_state(pool.groups[0], h, conv, ring, shards)
    return pool._replace(groups=scatter_rows(pool.groups, slots, state, shards))


def read_step(
    shards: Collectives, channels: int, pool: StatePool, slots: Int32[Array, " 1"]
) -> tuple[Float32[Array, "L E"], Float[Array, "L K1 E"], Float[Array, "W A 2 d"]]:
    """A slot's state, as `restore_step` takes it."""
    state = gather_rows(pool.groups, slots, jnp.zeros(1, jnp.bool), shards, from_all=True)
    return as_arrays(state, shards, channels)


def mask_step(
    shards: Collectives, pool: StatePool, slots: Int32[Array, " R"], allowed: UInt32[Array, "R W"]
) -> StatePool:
    """Says which tokens may come next in some slots; a slot past the pool is left out."""
    memory = pool.slots.memory
    memory = memory._replace(allowed=_put(memory.allowed, slots, allowed, shards))
    return pool._replace(slots=pool.slots._replace(memory=memory))


def _put[Tree](old: Tree, slots: Int32[Array, " R"], new: Tree, shards: Collectives) -> Tree:
    """Rows of slots replaced, as far as they are this data shard's."""

    def put(old: Array, new: Array) -> Array:
        local = slots - shards.slot_offset(old.shape[0])
        return old.at[jnp.where(local < 0, old.shape[0], local)].set(new, mode="drop")

    placed: Tree = jax.tree.map(put, old, new)
    return placed


def _take[Tree](tree: Tree, slots: Int32[Array, " R"], shards: Collectives) -> Tree:
    """Rows of slots, of whichever data shard they are."""
    if shards.data == 1:
        taken: Tree = jax.tree.map(lambda x: x[slots], tree)
        return taken

    def take(x: Array) -> Array:
        local = slots - shards.slot_offset(x.shape[0])
        is_here = ((local >= 0) & (local < x.shape[0])).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(is_here, x[jnp.clip(local, 0, x.shape[0] - 1)], jnp.zeros((), x.dtype))

    shared: Tree = shards.psum_slots(jax.tree.map(take, tree))
    return shared
