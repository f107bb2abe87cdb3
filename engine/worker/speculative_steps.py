"""Decode steps that draft tokens and verify them: the tokens and bits of `steps.decode_step`, in fewer passes.

A round takes each row's last token and its drafts, computes all of them with the arithmetic of single steps, samples at
each position with that position's own random number, and keeps the state after the last token that was sampled as
drafted. Letters in shapes: see `steps`; S maximum number of tokens of a row in a round, M pairs.
"""

from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

from ..model.griffin import Griffin
from ..model.speculation import (
    Accepted,
    Drafts,
    DraftState,
    Kept,
    Pairs,
    accept,
    learn,
    propose,
    record,
    with_forced,
    within,
)
from ..model.state import ModelState
from ..sampling.sampler import RowFlags, RowInts, Sampled, TokenMemory, is_penalized, no_logprobs, record_tokens
from ..types.config import Speculation
from ..types.sampling_params import MAX_LOGPROBS
from .steps import SlotState, StatePool, decode_once, is_last, mark_broken, sample_or_greedy, with_progress

_MOST_PAIRS: Final = 32
"""Maximum number of tokens of a round."""


class Speculated(NamedTuple):
    """Result of a dispatch.

    Attributes:
      sampled: Tokens of each round.
      rows: Row that each token belongs to; R for tokens that are not kept. A row's tokens are in order.
      starts: Position of the first token of each row's draft in its history.
      drafted: Number of drafted tokens of each row.
      accepted: Number of accepted tokens of each row.
    """

    sampled: Sampled
    rows: Int32[Array, "K M"]
    starts: Int32[Array, "K R"]
    drafted: Int32[Array, "K R"]
    accepted: Int32[Array, "K R"]


class _Carry(NamedTuple):
    """State between two rounds of one dispatch."""

    done: Int32[Array, ""]
    layers: ModelState
    slots: SlotState
    result: Speculated


def num_pairs(rows: int, settings: Speculation) -> int:
    """Returns the number of tokens of a round, enough for all rows' longest drafts up to a limit"""
    return min(rows * (1 + settings.num_tokens), _MOST_PAIRS)


def speculative_step(
    model: Griffin,
    settings: Speculation,
    max_steps: int,
    pool: StatePool,
    active: RowFlags,
    limits: RowInts,
    forced: Int32[Array, "R T"],
    steps: Int32[Array, ""],
) -> tuple[StatePool, Speculated]:
    """Generates tokens in the active slots among the first R, as `steps.decode_step` does on a single device.

    Args:
      model: The model.
      settings: Lengths of matches and drafts.
      max_steps: K, the maximum of `steps`.
      pool: All slots.
      active: Whether each slot of the first R gets tokens.
      limits: Maximum number of tokens that each row drafts from its history in a round.
      forced: Next tokens of each row that are the only ones allowed, then `NO_TOKEN`. The token mask of a row with
        some is that of the token after them, and `steps` is 1.
      steps: Number of rounds. A row gets a token and its accepted drafts in every round.
    """
    rows = active.shape[0]
    slots = jax.tree.map(lambda x: model.collectives.first_rows(x, rows), pool.slots)
    verify, plain = (partial(each, model, settings, active) for each in (_verify_round, _plain_round))

    def is_wanted(carry: _Carry) -> Bool[Array, ""]:
        return (carry.done < steps) & jnp.any(active & carry.slots.goes_on)

    def run_round(carry: _Carry) -> _Carry:
        drafts = _draft(settings, active, limits, forced, carry.slots)
        ran: _Carry = jax.lax.cond(jnp.any(drafts.counts > 0), verify, plain, carry, drafts)
        return ran._replace(done=carry.done + 1)

    nothing = _no_tokens(model, rows, (max_steps, num_pairs(rows, settings)))
    carry = _Carry(jnp.zeros((), jnp.int32), pool.states.state, slots, nothing)
    carry = jax.lax.while_loop(is_wanted, run_round, carry)
    states = pool.states.map(lambda _: carry.layers)
    slots = with_progress(pool.slots, carry.slots, model.collectives)
    return pool._replace(states=states, slots=slots), carry.result


def _no_tokens(model: Griffin, rows: int, shape: tuple[int, int]) -> Speculated:
    zeros = jnp.zeros((shape[0], rows), jnp.int32)
    sampled = Sampled(jnp.zeros(shape, jnp.int32), no_logprobs(shape, model.config.vocab_size, MAX_LOGPROBS))
    of_rows = jnp.full(shape, rows, jnp.int32)
    return Speculated(sampled, of_rows, zeros, zeros, zeros)


def _draft(
    settings: Speculation, active: RowFlags, limits: RowInts, forced: Int32[Array, "R T"], slots: SlotState
) -> Drafts:
    """Returns the drafts of a round. No draft goes past a request's last position, or past the round."""
    assert slots.drafts is not None
    live = active & slots.goes_on
    left = slots.sampling.last_position - slots.positions - 1
    room = num_pairs(active.shape[0], settings) - jnp.sum(live, dtype=jnp.int32)
    most = jnp.where(live & (room > 0), left, 0)
    drafts = propose(slots.drafts, slots.positions, jnp.minimum(limits, most), settings)
    drafts = with_forced(drafts, forced, slots.positions, most)
    return drafts._replace(counts=within(drafts.counts, room))


def _plain_round(model: Griffin, settings: Speculation, active: RowFlags, carry: _Carry, drafts: Drafts) -> _Carry:
    """Runs a decode step, for rows without drafts or without room for them."""
    rows = jnp.where(active & carry.slots.goes_on, jnp.arange(active.shape[0]), active.shape[0])
    memory = carry.slots.memory
    memory = memory._replace(allowed=_allowed(memory.allowed, drafts, jnp.zeros_like(rows)))
    layers, slots, sampled = decode_once(model, carry.layers, carry.slots._replace(memory=memory), active)
    assert slots.drafts is not None
    depth = learn(slots.drafts.depth, drafts, sampled.tokens, drafts.counts, settings)
    slots = slots._replace(drafts=slots.drafts._replace(depth=depth))
    return carry._replace(layers=layers, slots=slots, result=_put(carry.result, carry.done, sampled, rows))


def _put(result: Speculated, done: Int32[Array, ""], sampled: Sampled, rows: Int32[Array, " N"]) -> Speculated:
    """Returns the result with the tokens of a round, and the row that each belongs to."""
    count = rows.shape[0]
    put = partial(jax.tree.map, lambda all_, one: all_.at[done, :count].set(one))
    return result._replace(sampled=put(result.sampled, sampled), rows=put(result.rows, rows))


def _verify_round(model: Griffin, settings: Speculation, active: RowFlags, carry: _Carry, drafts: Drafts) -> _Carry:
    """Verifies drafts: computes the last token and the drafts of each row."""
    slots, live, depth = carry.slots, active & carry.slots.goes_on, 1 + settings.num_tokens
    size = num_pairs(active.shape[0], settings)
    pairs = Pairs.of(jnp.where(live, 1 + drafts.counts, 0), size)
    tokens = jnp.concatenate([slots.tokens[:, None], drafts.tokens], axis=1)
    own_tokens = pairs.of_rows(tokens)[jnp.arange(size), jnp.clip(pairs.offsets, 0, settings.num_tokens)]
    positions = jnp.where(pairs.is_used, pairs.of_rows(slots.positions) + pairs.offsets, -1)
    hidden, states = model.verify(own_tokens, positions, carry.layers, pairs, depth)
    sampled = mark_broken(sample_or_greedy(model, hidden, _slots_of(pairs, slots, drafts), pairs.is_used), hidden)
    by_row = pairs.by_row(sampled.tokens, depth)
    later = slots.positions[:, None] + 1 + jnp.arange(depth)
    accepted = accept(drafts, by_row, jax.vmap(is_last, (1, 1, None), 1)(by_row, later, slots.sampling))
    kept = Kept(slots.positions, pairs.counts, accepted.last)
    new_slots = _advance(settings, slots, live, drafts, by_row, accepted)
    rows = jnp.where(pairs.offsets <= pairs.of_rows(accepted.last), pairs.rows, pairs.counts.shape[0])
    result, done = _put(carry.result, carry.done, sampled, rows), carry.done
    result = result._replace(
        starts=result.starts.at[done].set(drafts.starts),
        drafted=result.drafted.at[done].set(drafts.counts),
        accepted=result.accepted.at[done].set(accepted.counts),
    )
    return carry._replace(layers=tuple(each.keep(kept) for each in states), slots=new_slots, result=result)


def _slots_of(pairs: Pairs, slots: SlotState, drafts: Drafts) -> SlotState:
    """Returns the decoding state of each pair: that of its row, as if the drafts before the pair had been accepted."""
    sampling, in_prompt, allowed, recent, first, drafted = jax.tree.map(
        pairs.of_rows,
        (slots.sampling, slots.memory.in_prompt, slots.memory.allowed, slots.memory.recent, slots.positions, drafts),
    )
    places = jnp.arange(drafted.tokens.shape[1])
    columns = jnp.where(
        places < pairs.offsets[:, None], (first[:, None] + 1 + places) % recent.shape[1], recent.shape[1]
    )
    recent = recent.at[jnp.arange(recent.shape[0])[:, None], columns].set(drafted.tokens, mode="drop")
    memory = TokenMemory(in_prompt, _allowed(allowed, drafted, pairs.offsets), recent)
    return SlotState(jnp.zeros_like(first), first + pairs.offsets, pairs.is_used, sampling, memory)


def _allowed(allowed: UInt32[Array, "M W"], drafts: Drafts, offsets: Int32[Array, " M"]) -> UInt32[Array, "M W"]:
    """Returns token masks at some offsets from the last token: a forced token is the only one of its mask.

    Args:
      allowed: Mask after the forced tokens of each row.
      drafts: Drafts of each row.
      offsets: Offset of each row.
    """
    token = jnp.take_along_axis(drafts.tokens, jnp.clip(offsets, 0, drafts.tokens.shape[1] - 1)[:, None], axis=1)
    bit = jnp.left_shift(jnp.uint32(1), (token & 31).astype(jnp.uint32))
    only = jnp.where(jnp.arange(allowed.shape[1]) == token >> 5, bit, jnp.uint32(0))
    return jnp.where((offsets < drafts.num_forced)[:, None], only, allowed)


def _advance(
    settings: Speculation,
    slots: SlotState,
    live: RowFlags,
    drafts: Drafts,
    sampled: Int32[Array, "R S"],
    accepted: Accepted,
) -> SlotState:
    """Returns the slots after the tokens that were kept."""
    assert slots.drafts is not None
    counts = jnp.where(live, accepted.last + 1, 0)
    last = jnp.take_along_axis(sampled, accepted.last[:, None], axis=1)[:, 0]
    tokens, positions = jnp.where(live, last, slots.tokens), slots.positions + counts
    recent, penalized = slots.memory.recent, live & is_penalized(slots.sampling)
    for place in range(sampled.shape[1]):
        recent = record_tokens(recent, sampled[:, place], slots.positions + 1 + place, penalized & (place < counts))
    history = record(slots.drafts.history, sampled, slots.positions + 1, counts)
    learnt = DraftState(history, learn(slots.drafts.depth, drafts, sampled[:, 0], accepted.counts, settings))
    goes_on = slots.goes_on & ~(live & is_last(tokens, positions, slots.sampling))
    return SlotState(tokens, positions, goes_on, slots.sampling, slots.memory._replace(recent=recent), learnt)
