"""Inputs of device programs, as arrays of a compiled shape on the host."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ..core.batch import PrefillChunk
from ..core.output_constraint import TokenMask, mask_of_ids
from ..sampling.columns import sampling_columns


def prefill_columns(
    chunks: Sequence[PrefillChunk], places: Sequence[int], rows: int, length: int, pool_rows: int
) -> dict[str, Any]:
    """Returns the fields of `PrefillInput`.

    Args:
      chunks: Chunks of prompts.
      places: Row of each chunk.
      rows: Number of rows of the compiled shape, on all data shards.
      length: Number of tokens per row of the compiled shape.
      pool_rows: Number of rows of the state pool.
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
    """Returns the token that follows each of the chunks' tokens in its prompt; see `prefill_columns`."""
    targets = np.zeros((rows, length), np.int32)
    for row, chunk in zip(places, chunks, strict=True):
        following = chunk.request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        targets[row, : len(following)] = following
    return targets


def first_token_columns(
    ends: Sequence[tuple[int, PrefillChunk]], rows: int, pool_rows: int, mask_words: int
) -> dict[str, Any]:
    """Returns the fields of `FirstTokenInput`.

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
    """Yields slots and masks in batches of `rows` rows; padding has a slot past the pool."""
    for start in range(0, len(masks), rows):
        slots, words = np.full(rows, pool_rows, np.int32), np.zeros((rows, mask_words), np.uint32)
        for row, (slot, mask) in enumerate(masks[start : start + rows]):
            slots[row], words[row] = slot, mask
        yield slots, words
