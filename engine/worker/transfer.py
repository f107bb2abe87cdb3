"""Copies between the host and the device: inputs of device programs as arrays of a compiled shape, and states."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Array, Float, Int

from ..model.state import BlockStates
from ..sampling.sampler import TokenMemory
from ..types.config import HISTORY, MAX_MATCH, PREFILL_BLOCK, UNUSED_PREDICTION, PredictionUse
from ..types.host_memory import HostArray, pack_ids
from ..types.output_constraint import Forced, TokenMask, mask_of_ids
from ..types.request import DecodeBatch, FirstToken, PrefillChunk, ReplayedRow, Request
from ..types.sampling_params import NO_LIMIT, NO_TOKEN, NUMBER_COLUMNS, PENALTY_WINDOW, SAMPLING_COLUMNS, SamplingState
from ..types.snapshot import BlockState, Snapshot
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
        params, start, stop_ids = request.params, len(request.prompt_token_ids), sorted(request.params.stop_ids)
        for name, column in NUMBER_COLUMNS.items():
            value = getattr(params, name)
            columns[name][row] = min(value, NO_LIMIT) if column.dtype == "int32" else value
        if params.temperature < _SMALLEST_NORMAL:
            columns["temperature"][row] = 0.0
        columns["seed"][row] = params.seed & 0xFFFFFFFF, params.seed >> 32
        columns["wants_logprobs"][row] = params.logprobs is not None
        for place, (token_id, bias) in enumerate(params.logit_bias):
            columns["bias_ids"][row, place], columns["biases"][row, place] = token_id, bias
        columns["stop_ids"][row, : len(stop_ids)] = stop_ids
        columns["named_ids"][row, : len(params.logprob_token_ids)] = params.logprob_token_ids
        columns["min_position"][row] = min(start + params.min_tokens, NO_LIMIT)
        if params.max_tokens is not None:
            columns["last_position"][row] = min(start + params.max_tokens - 1, NO_LIMIT)
    return columns


def prefill_input(
    chunks: Sequence[PrefillChunk], places: Sequence[int], rows: int, length: int, pool_rows: int
) -> PrefillInput:
    """Returns the input of a prefill step.

    Args:
      chunks: Chunks of prompts.
      places: Row of each chunk.
      rows: Number of rows of the compiled shape, on all data shards.
      length: Number of tokens per row of the compiled shape.
    """
    tokens, slots = np.zeros((rows, length), np.int32), np.full(rows, pool_rows, np.int32)
    starts, lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row, chunk in zip(places, chunks, strict=True):
        end = chunk.start + chunk.length
        tokens[row, : chunk.length] = chunk.request.prompt_token_ids[chunk.start : end]
        starts[row], lengths[row], slots[row] = chunk.start, chunk.length, chunk.slot
    return PrefillInput(tokens, starts, lengths, slots)  # type: ignore[arg-type]


def score_targets(chunk: PrefillChunk, shard: int, shape: tuple[int, int]) -> Int[np.ndarray, "S N"]:
    """Returns the token that follows each token of a chunk in its prompt.

    Args:
      shard: Data shard of the chunk.
      shape: Numbers of data shards and of tokens.
    """
    targets = np.zeros(shape, np.int32)
    following = chunk.request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
    targets[shard, : len(following)] = following
    return targets


def first_token_input(
    ends: Sequence[FirstToken], rows: int, pool_rows: int, mask_words: int, *, drafts: bool = False
) -> FirstTokenInput:
    """Returns the input of a step that samples first tokens.

    Args:
      ends: Requests that get first tokens.
      rows: Number of rows of the compiled shape.
      drafts: Whether tokens are drafted.
    """
    requests = [end.request for end in ends]
    sampling, in_prompt, allowed = _sampling_and_masks(requests, [end.mask for end in ends], rows, mask_words)
    return FirstTokenInput(
        slots=_padded([end.slot for end in ends], rows, pool_rows),
        lengths=_padded([len(request.prompt_token_ids) for request in requests], rows),
        sampling=sampling,
        in_prompt=in_prompt,
        allowed=allowed,
        history=histories([(request, ()) for request in requests], rows) if drafts else None,
    )


def replay_input(
    rows: Sequence[ReplayedRow], size: int, pool_rows: int, mask_words: int, *, drafts: bool = False
) -> ReplayInput:
    """Returns the input of a step that sets slots' decoding states.

    Args:
      rows: Slots and their requests.
      size: Number of rows of the compiled shape.
      mask_words: Number of words of a token mask.
      drafts: Whether tokens are drafted.
    """
    requests, generated = [row.request for row in rows], [_generated(row) for row in rows]
    sampling, in_prompt, allowed = _sampling_and_masks(requests, [row.mask for row in rows], size, mask_words)
    recent: Any = np.full((size, PENALTY_WINDOW), NO_TOKEN, np.int32)
    positions = [len(row.request.prompt_token_ids) + row.num_tokens - 1 for row in rows]
    for place, (position, token_ids) in enumerate(zip(positions, generated, strict=True)):
        last = token_ids[-PENALTY_WINDOW:]
        recent[place, np.arange(position - len(last) + 1, position + 1) % PENALTY_WINDOW] = last
    return ReplayInput(
        slots=_padded([row.slot for row in rows], size, pool_rows),
        tokens=_padded([token_ids[-1] for token_ids in generated], size),
        positions=_padded(positions, size),
        sampling=sampling,
        memory=TokenMemory(in_prompt, allowed, recent),
        history=histories(list(zip(requests, generated, strict=True)), size) if drafts else None,
    )


def _padded(values: Sequence[int], rows: int, padding: int = 0) -> Any:
    """Returns a column of a compiled shape."""
    column = np.full(rows, padding, np.int32)
    column[: len(values)] = values
    return column


def _generated(row: ReplayedRow) -> tuple[int, ...]:
    """Returns the tokens that the request has generated before the row's step."""
    assert row.request.replay is not None
    return row.request.replay.token_ids[: row.num_tokens]


def _sampling_and_masks(
    requests: Sequence[Request], masks: Sequence[TokenMask | None], rows: int, mask_words: int
) -> tuple[SamplingState[Any], Any, Any]:
    """Returns the sampling state, and both masks of `TokenMemory`.

    Args:
      requests: Requests of the first rows.
      masks: Mask of each request's output constraint.
      mask_words: Number of words of a token mask.
    """
    sampling: dict[str, Any] = sampling_columns(requests, rows)
    in_prompt, allowed = (np.zeros((rows, mask_words), np.uint32) for _ in range(2))
    prompt_masks: dict[int, TokenMask] = {}  # by identity, as forks share their prompt
    for row, (request, mask) in enumerate(zip(requests, masks, strict=True)):
        params, prompt = request.params, request.prompt_token_ids
        if params.repetition_penalty != 1:
            if id(prompt) not in prompt_masks:
                prompt_masks[id(prompt)] = mask_of_ids(prompt, mask_words)
            in_prompt[row] = prompt_masks[id(prompt)]
        if mask is None and params.static_mask is not None:
            mask = params.static_mask.mask(mask_words)
        if mask is not None:
            allowed[row], sampling["is_masked"][row] = mask, True
    return SamplingState(**sampling), in_prompt, allowed


def mask_columns(
    masks: Sequence[tuple[int, TokenMask]], rows: int, pool_rows: int, mask_words: int
) -> Iterator[tuple[Int[np.ndarray, " R"], TokenMask]]:
    """Yields slots and masks in batches of `rows` rows; padding has a slot past the pool."""
    for start in range(0, len(masks), rows):
        slots, words = np.full(rows, pool_rows, np.int32), np.zeros((rows, mask_words), np.uint32)
        for row, (slot, mask) in enumerate(masks[start : start + rows]):
            slots[row], words[row] = slot, mask
        yield slots, words


def masks_after_drafts(batch: DecodeBatch) -> list[tuple[int, TokenMask]]:
    """Returns the slots and masks of a batch; for a request with forced tokens, the mask of the token after them."""
    forced = {slot: each for slot, each in zip(batch.slots, batch.drafts, strict=True) if isinstance(each, Forced)}
    return [(slot, forced[slot].mask if slot in forced else mask) for slot, mask in batch.masks]


def draft_columns(
    drafts: Sequence[int | Forced], places: Sequence[int], shape: tuple[int, int]
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, "R T"]]:
    """Returns `limits` and `forced` of `speculative_step`.

    Args:
      drafts: Drafts of each request.
      places: Row of each request.
      shape: Number of rows, and maximum number of drafted tokens.
    """
    limits, forced = np.zeros(shape[0], np.int32), np.full(shape, NO_TOKEN, np.int32)
    for place, draft in zip(places, drafts, strict=True):
        if isinstance(draft, Forced):
            forced[place, : len(draft.token_ids)] = draft.token_ids
        else:
            limits[place] = draft
    return limits, forced


def read_block_states(
    block_states: Sequence[BlockStates], last: Float[Array, "Rmax D"], chunk: PrefillChunk, row: int, end_row: int
) -> tuple[BlockState, ...]:
    """Waits for the device, and returns the states of one chunk of a batch.

    They are copies without the device arrays' padding, which is most of those.

    Args:
      block_states: States of all rows, one for each layer slice.
      last: Activations of the rows' last tokens.
      chunk: The chunk that was prefilled.
      row, end_row: Its row in `block_states` and in `last`.
    """
    recurrent = [_all_layers(parts, row) for parts in zip(*(each.recurrent for each in block_states), strict=True)]
    window = _all_layers([each.window for each in block_states], row)

    def block_state(block: int) -> BlockState:
        start = block * PREFILL_BLOCK
        end = min(start + PREFILL_BLOCK, chunk.length)
        is_end = chunk.is_last and end == chunk.length
        kept = tuple(array[block].copy() for array in recurrent)
        state = BlockState(kept, window[start:end].copy(), np.asarray(last)[end_row].copy() if is_end else None)
        _ = state.is_finite  # computed here, so that the engine's thread only looks it up
        return state

    return tuple(map(block_state, range(-(-chunk.length // PREFILL_BLOCK))))


def _all_layers(slices: Sequence[Array], row: int) -> HostArray:
    """Returns a row of the layer slices' arrays of one kind, joined along the third axis; a slice may have no layer of
    it.
    """
    arrays = [np.asarray(each)[row] for each in slices]
    some = [array for array in arrays if array.shape[1]] or arrays[:1]
    return some[0] if len(some) == 1 else np.concatenate(some, axis=1)  # which would copy


def window_rows(snapshot: Snapshot, window: int) -> HostArray:
    """Returns a snapshot's keys and values as a slot holds them, `[window, ...]`.

    Position p is in row p mod `window`; rows without a position are zeros.
    """
    first = snapshot.window[0]
    slot = np.zeros((window, *first.shape[1:]), first.dtype)
    position = snapshot.length - sum(map(len, snapshot.window))
    oldest = max(0, snapshot.length - window)
    for block in snapshot.window:
        rows = block[max(0, oldest - position) :]
        start = max(position, oldest) % window
        fits = min(len(rows), window - start)
        slot[start : start + fits] = rows[:fits]
        slot[: len(rows) - fits] = rows[fits:]
        position += len(block)
    return slot


def histories(requests: Sequence[tuple[Request, Sequence[int]]], rows: int) -> Any:
    """Returns `DraftState.history` `[R, H]` of requests, each with the tokens that it has generated.

    The other rows have no tokens.
    """
    columns = np.full((rows, HISTORY), NO_TOKEN, np.int32)
    for row, (request, generated) in enumerate(requests):
        tokens = pack_ids(request.searched_token_ids, generated)[-HISTORY:]
        end = len(request.prompt_token_ids) + len(generated)
        columns[row, np.arange(end - len(tokens), end) % HISTORY] = tokens
    return columns


def prediction_use(request: Request, drafts: Iterable[tuple[int, int, int]]) -> PredictionUse:
    """Returns which tokens of a request's prediction some drafts had.

    Args:
      request: The request.
      drafts: Position of each draft's first token in the history, and its numbers of drafted and of accepted tokens.
    """
    length, size = len(request.prompt_token_ids), len(request.predicted_token_ids)
    first = length - min(length, MAX_MATCH) - size
    use = UNUSED_PREDICTION
    for start, num_drafted, num_accepted in drafts:
        use = use.plus(PredictionUse(*(_bits(start - first, count, size) for count in (num_drafted, num_accepted))))
    return use


def _bits(start: int, count: int, size: int) -> int:
    """Returns the bits from `start` to `start + count`, within those from 0 to `size`."""
    first, end = max(start, 0), min(start + count, size)
    return (1 << end) - (1 << first) if first < end else 0
