"""Batches as arrays of a compiled shape, made on the host."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Int

from ..core.batch import PrefillChunk
from ..core.output_constraint import TokenMask, mask_of_ids
from ..core.request import Request
from ..core.sampling_params import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, NO_LIMIT, NO_TOKEN

_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)
"""Processors may take smaller numbers for 0."""


def prefill_columns(
    chunks: Sequence[PrefillChunk], places: Sequence[int], rows: int, length: int, pool_rows: int
) -> dict[str, Any]:
    """The fields of `PrefillInput` of a compiled shape.

    Args:
      chunks: of prompts.
      places: the row of each.
      rows, length: of the shape.
      pool_rows: the number of slots.
    """
    columns = {
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
    return columns


def score_targets(
    chunks: Sequence[PrefillChunk], places: Sequence[int], rows: int, length: int
) -> Int[np.ndarray, "R T"]:
    """`[rows, length]`: the token that follows each of the chunks' tokens in its prompt; see `prefill_columns`."""
    targets = np.zeros((rows, length), np.int32)
    for row, chunk in zip(places, chunks, strict=True):
        following = chunk.request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        targets[row, : len(following)] = following
    return targets


def first_token_columns(
    ends: Sequence[tuple[int, PrefillChunk]], rows: int, pool_rows: int, mask_words: int
) -> dict[str, Any]:
    """The fields of `FirstTokenInput`.

    Args:
      ends: prompts' last chunks and their forks, each with its row in the prefill batch.
    """
    columns: dict[str, Any] = {
        "rows": np.zeros(rows, np.int32),
        "slots": np.full(rows, pool_rows, np.int32),
        "lengths": np.zeros(rows, np.int32),
        "sampling": sampling_columns([chunk.request for _, chunk in ends], rows),
        "in_prompt": np.zeros((rows, mask_words), np.uint32),
        "allowed": np.zeros((rows, mask_words), np.uint32),
    }
    prompt_masks: dict[int, TokenMask] = {}  # by identity, as forks share their prompt
    for row, (source, chunk) in enumerate(ends):
        request, params = chunk.request, chunk.request.params
        columns["rows"][row], columns["slots"][row] = source, chunk.slot
        columns["lengths"][row] = chunk.start + chunk.length
        if params.repetition_penalty != 1:
            prompt = request.prompt_token_ids
            if id(prompt) not in prompt_masks:
                prompt_masks[id(prompt)] = mask_of_ids(prompt, mask_words)
            columns["in_prompt"][row] = prompt_masks[id(prompt)]
        mask = chunk.mask
        if mask is None and params.static_mask is not None:
            mask = params.static_mask.mask(mask_words)
        if mask is not None:
            columns["allowed"][row], columns["sampling"]["is_masked"][row] = mask, True
    return columns


def mask_columns(
    masks: Sequence[tuple[int, TokenMask]], rows: int, pool_rows: int, mask_words: int
) -> Iterator[tuple[Int[np.ndarray, " R"], TokenMask]]:
    """Slots and masks in batches of so many rows."""
    for start in range(0, len(masks), rows):
        slots, words = np.full(rows, pool_rows, np.int32), np.zeros((rows, mask_words), np.uint32)
        for row, (slot, mask) in enumerate(masks[start : start + rows]):
            slots[row], words[row] = slot, mask
        yield slots, words


def sampling_columns(requests: Sequence[Request], rows: int) -> dict[str, Any]:
    """The fields of `SamplingState`; rows past the requests ask for nothing."""
    columns = {
        "temperature": np.zeros(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "typical_p": np.ones(rows, np.float32),
        "frequency_penalty": np.zeros(rows, np.float32),
        "presence_penalty": np.zeros(rows, np.float32),
        "repetition_penalty": np.ones(rows, np.float32),
        "bias_ids": np.full((rows, MAX_BIASES), NO_TOKEN, np.int32),
        "biases": np.zeros((rows, MAX_BIASES), np.float32),
        "is_masked": np.zeros(rows, np.bool),
        "seed": np.zeros((rows, 2), np.uint32),
        "min_position": np.zeros(rows, np.int32),
        "last_position": np.full(rows, NO_LIMIT, np.int32),
        "stop_ids": np.full((rows, MAX_STOP_IDS), NO_TOKEN, np.int32),
        "named_ids": np.full((rows, MAX_LOGPROBS), NO_TOKEN, np.int32),
        "wants_logprobs": np.zeros(rows, np.bool),
    }
    for row, request in enumerate(requests):
        params, stop_ids = request.params, sorted(request.params.stop_ids)
        is_greedy = params.temperature < _SMALLEST_NORMAL
        columns["temperature"][row], columns["top_p"][row] = 0.0 if is_greedy else params.temperature, params.top_p
        columns["top_k"][row], columns["min_p"][row] = min(params.top_k, NO_LIMIT), params.min_p
        for name in ("typical_p", "frequency_penalty", "presence_penalty", "repetition_penalty"):
            columns[name][row] = getattr(params, name)
        for place, (token_id, bias) in enumerate(params.logit_bias):
            columns["bias_ids"][row, place], columns["biases"][row, place] = token_id, bias
        columns["seed"][row] = params.seed & 0xFFFFFFFF, params.seed >> 32
        columns["min_position"][row] = min(len(request.prompt_token_ids) + params.min_tokens, NO_LIMIT)
        if params.max_tokens is not None:
            last = len(request.prompt_token_ids) + params.max_tokens - 1
            columns["last_position"][row] = min(last, NO_LIMIT)
        columns["stop_ids"][row, : len(stop_ids)] = stop_ids
        columns["named_ids"][row, : len(params.logprob_token_ids)] = params.logprob_token_ids
        columns["wants_logprobs"][row] = params.logprobs is not None
    return columns
