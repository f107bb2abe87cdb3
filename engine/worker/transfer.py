"""Copies between the host and the device: inputs of device programs as arrays of a compiled shape, and states."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from jaxtyping import Array, Float, Int

from ..core.arrays import HostArray
from ..core.config import PREFILL_BLOCK
from ..core.output_constraint import TokenMask, mask_of_ids
from ..core.request import PrefillChunk, ReplayedRow, Request
from ..core.sampling_params import NO_LIMIT, NO_TOKEN, NUMBER_COLUMNS, PENALTY_WINDOW, SAMPLING_COLUMNS, SamplingState
from ..core.snapshot import BlockState, Snapshot
from ..model.state import BlockStates
from ..sampling.state import TokenMemory
from .steps import FirstTokenInput, PrefillInput, ReplayInput

_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)
"""Processors may flush smaller numbers to 0."""


def sampling_columns(requests: Sequence[Request], rows: int) -> dict[str, HostArray]:
    """Returns the arrays of `SamplingState` by name.

    Args:
      requests: Requests of the first rows; the other rows get neutral values.
      rows: Number of rows. `is_masked` is False in all of them.
    """
    columns = {
        name: np.full((rows, *column.shape), column.neutral, column.dtype) for name, column in SAMPLING_COLUMNS.items()
    }
    for row, request in enumerate(requests):
        _fill_numbers(columns, row, request)
        _fill_lists(columns, row, request)
        _fill_positions(columns, row, request)
    return columns


def _fill_numbers(columns: dict[str, HostArray], row: int, request: Request) -> None:
    params = request.params
    for name, column in NUMBER_COLUMNS.items():
        value = getattr(params, name)
        columns[name][row] = min(value, NO_LIMIT) if column.dtype == "int32" else value
    if params.temperature < _SMALLEST_NORMAL:
        columns["temperature"][row] = 0.0
    columns["seed"][row] = params.seed & 0xFFFFFFFF, params.seed >> 32
    columns["wants_logprobs"][row] = params.logprobs is not None


def _fill_lists(columns: dict[str, HostArray], row: int, request: Request) -> None:
    params, stop_ids = request.params, sorted(request.params.stop_ids)
    for place, (token_id, bias) in enumerate(params.logit_bias):
        columns["bias_ids"][row, place], columns["biases"][row, place] = token_id, bias
    columns["stop_ids"][row, : len(stop_ids)] = stop_ids
    columns["named_ids"][row, : len(params.logprob_token_ids)] = params.logprob_token_ids


def _fill_positions(columns: dict[str, HostArray], row: int, request: Request) -> None:
    params, start = request.params, len(request.prompt_token_ids)
    columns["min_position"][row] = min(start + params.min_tokens, NO_LIMIT)
    if params.max_tokens is not None:
        columns["last_position"][row] = min(start + params.max_tokens - 1, NO_LIMIT)


def prefill_input(
    chunks: Sequence[PrefillChunk], places: Sequence[int], rows: int, length: int, pool_rows: int
) -> PrefillInput:
    """Returns the input of a prefill step.

    Args:
      chunks: Chunks of prompts.
      places: Row of each chunk.
      rows: Number of rows of the compiled shape, on all data shards.
      length: Number of tokens per row of the compiled shape.
      pool_rows: Number of rows of the state pool.
    """
    columns: dict[str, Any] = {
        "tokens": np.zeros((rows, length), np.int32),
        "starts": np.zeros(rows, np.int32),
        "lengths": np.zeros(rows, np.int32),
        "slots": np.full(rows, pool_rows, np.int32),
    }
    for row, chunk in zip(places, chunks, strict=True):
        request, end = chunk.request, chunk.start + chunk.length
        columns["tokens"][row, : chunk.length] = request.prompt_token_ids[chunk.start : end]
        columns["starts"][row], columns["lengths"][row] = chunk.start, chunk.length
        columns["slots"][row] = chunk.slot
    return PrefillInput(**columns)


def score_targets(
    chunks: Sequence[PrefillChunk], places: Sequence[int], rows: int, length: int
) -> Int[np.ndarray, "R T"]:
    """Returns the token that follows each of the chunks' tokens in its prompt; see `prefill_input`."""
    targets = np.zeros((rows, length), np.int32)
    for row, chunk in zip(places, chunks, strict=True):
        following = chunk.request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        targets[row, : len(following)] = following
    return targets


def first_token_input(
    ends: Sequence[tuple[int, PrefillChunk]], rows: int, pool_rows: int, mask_words: int
) -> FirstTokenInput:
    """Returns the input of a step that samples first tokens.

    Args:
      ends: Last chunks of prompts and their forks, each with the row of its last token in the activations.
      rows: Number of rows of the compiled shape.
      pool_rows: Number of rows of the state pool.
      mask_words: Number of words of a token mask.
    """
    columns: dict[str, Any] = {
        "rows": np.zeros(rows, np.int32),
        "slots": np.full(rows, pool_rows, np.int32),
        "lengths": np.zeros(rows, np.int32),
    }
    for row, (source, chunk) in enumerate(ends):
        columns["rows"][row], columns["slots"][row] = source, chunk.slot
        columns["lengths"][row] = chunk.start + chunk.length
    sampling, masks = _sampling_and_masks([(chunk.request, chunk.mask) for _, chunk in ends], rows, mask_words)
    return FirstTokenInput(sampling=SamplingState(**sampling), **masks, **columns)


def replay_input(rows: Sequence[ReplayedRow], size: int, pool_rows: int, mask_words: int) -> ReplayInput:
    """Returns the input of a step that sets slots' decoding states.

    Args:
      rows: Slots and their requests.
      size: Number of rows of the compiled shape.
      pool_rows: Number of rows of the state pool.
      mask_words: Number of words of a token mask.
    """
    columns: dict[str, Any] = {
        "slots": np.full(size, pool_rows, np.int32),
        "tokens": np.zeros(size, np.int32),
        "positions": np.zeros(size, np.int32),
    }
    recent: Any = np.full((size, PENALTY_WINDOW), NO_TOKEN, np.int32)
    for place, row in enumerate(rows):
        assert row.request.replay is not None
        token_ids = row.request.replay.token_ids[: row.num_tokens]
        position, last = len(row.request.prompt_token_ids) + row.num_tokens - 1, token_ids[-PENALTY_WINDOW:]
        columns["slots"][place], columns["tokens"][place] = row.slot, token_ids[-1]
        columns["positions"][place] = position
        recent[place, np.arange(position - len(last) + 1, position + 1) % PENALTY_WINDOW] = last
    sampling, masks = _sampling_and_masks([(row.request, row.mask) for row in rows], size, mask_words)
    memory = TokenMemory(recent=recent, **masks)
    return ReplayInput(sampling=SamplingState(**sampling), memory=memory, **columns)


def _sampling_and_masks(
    requests: Sequence[tuple[Request, TokenMask | None]], rows: int, mask_words: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arrays of `SamplingState`, and both masks of `TokenMemory`, by name.

    Args:
      requests: Requests of the first rows, each with the mask of its output constraint.
      rows: Number of rows.
      mask_words: Number of words of a token mask.
    """
    sampling: dict[str, Any] = sampling_columns([request for request, _ in requests], rows)
    masks: dict[str, Any] = {name: np.zeros((rows, mask_words), np.uint32) for name in ("in_prompt", "allowed")}
    prompt_masks: dict[int, TokenMask] = {}  # by identity, as forks share their prompt
    for row, (request, mask) in enumerate(requests):
        params, prompt = request.params, request.prompt_token_ids
        if params.repetition_penalty != 1:
            if id(prompt) not in prompt_masks:
                prompt_masks[id(prompt)] = mask_of_ids(prompt, mask_words)
            masks["in_prompt"][row] = prompt_masks[id(prompt)]
        if mask is None and params.static_mask is not None:
            mask = params.static_mask.mask(mask_words)
        if mask is not None:
            masks["allowed"][row], sampling["is_masked"][row] = mask, True
    return sampling, masks


def mask_columns(
    masks: Sequence[tuple[int, TokenMask]], rows: int, pool_rows: int, mask_words: int
) -> Iterator[tuple[Int[np.ndarray, " R"], TokenMask]]:
    """Yields slots and masks in batches of `rows` rows; padding has a slot past the pool."""
    for start in range(0, len(masks), rows):
        slots, words = np.full(rows, pool_rows, np.int32), np.zeros((rows, mask_words), np.uint32)
        for row, (slot, mask) in enumerate(masks[start : start + rows]):
            slots[row], words[row] = slot, mask
        yield slots, words


def read_block_states(
    block_states: Sequence[BlockStates],
    last: Float[Array, "Rmax D"],
    chunks: Sequence[PrefillChunk],
    places: Sequence[int],
    ends: Sequence[int],
) -> Iterator[tuple[BlockState, ...]]:
    """Waits for the device and yields the states of each of a batch's chunks.

    They are copies without the device arrays' padding, which is most of those.

    Args:
      block_states: States of all rows, one for each layer slice.
      last: Activations of the rows' last tokens.
      chunks: The chunks that were prefilled.
      places, ends: Row of each chunk in `block_states` and in `last`.
    """
    h, conv, window = map(_all_layers, zip(*block_states, strict=True))
    hidden = np.asarray(last)

    def block_state(row: int, end_row: int, block: int, chunk: PrefillChunk) -> BlockState:
        start = block * PREFILL_BLOCK
        end = min(start + PREFILL_BLOCK, chunk.length)
        is_end = chunk.is_last and end == chunk.length
        recurrent = (h[row, block].copy(), conv[row, block].copy())
        return BlockState(recurrent, window[row, start:end].copy(), hidden[end_row].copy() if is_end else None)

    for row, end_row, chunk in zip(places, ends, chunks, strict=True):
        yield tuple(block_state(row, end_row, block, chunk) for block in range(-(-chunk.length // PREFILL_BLOCK)))


def _all_layers(slices: Sequence[Array]) -> HostArray:
    """Returns the layer slices' arrays of one kind, joined along the third axis; a slice may have no layer of it."""
    arrays = [np.asarray(each) for each in slices]
    some = [array for array in arrays if array.shape[2]] or arrays[:1]
    return some[0] if len(some) == 1 else np.concatenate(some, axis=2)  # which would copy


def read_slot(arrays: tuple[Array, Array, Array], length: int) -> Snapshot:
    """Waits for the device and returns the snapshot of a slot.

    Args:
      arrays: Results of `read_step`.
      length: Number of tokens that led to the state.
    """
    h, conv, ring = map(np.asarray, arrays)
    return from_ring(length, (h, conv), ring)


def from_ring(length: int, recurrent: tuple[HostArray, ...], ring: HostArray) -> Snapshot:
    """Returns the snapshot of a slot after `length` tokens; the inverse of `ring_rows`."""
    oldest = max(0, length - len(ring))
    edges = [oldest, *range(oldest // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK, length, PREFILL_BLOCK), length]
    blocks = (ring[np.arange(start, end) % len(ring)] for start, end in pairwise(edges))
    return Snapshot(length, recurrent, tuple(blocks))


def ring_rows(snapshot: Snapshot, window: int) -> HostArray:
    """Returns a snapshot's keys and values as a ring `[window, ...]`.

    Position p is in row p mod `window`; rows without a position are zeros.
    """
    first = snapshot.window[0]
    ring = np.zeros((window, *first.shape[1:]), first.dtype)
    position = snapshot.length - sum(map(len, snapshot.window))
    oldest = max(0, snapshot.length - window)
    for block in snapshot.window:
        rows = block[max(0, oldest - position) :]
        start = max(position, oldest) % window
        fits = min(len(rows), window - start)
        ring[start : start + fits] = rows[:fits]
        ring[: len(rows) - fits] = rows[fits:]
        position += len(block)
    return ring
