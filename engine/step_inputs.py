"""Batches as arrays of a compiled shape, made on the host."""

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
from jaxtyping import Int

from .request import MAX_STOP_IDS, NO_LIMIT, Request
from .sequence import PrefillChunk


def prefill_columns(chunks: Rows[PrefillChunk], rows: int, length: int, pool_rows: int) -> dict[str, Any]:
    """The fields of `PrefillInput` of a compiled shape."""
    columns = {
        "tokens": np.zeros((rows, length), np.int32),
        "starts": np.zeros(rows, np.int32),
        "lengths": np.zeros(rows, np.int32),
        "slots": np.full(rows, pool_rows, np.int32),
    }
    for row, chunk in enumerate(chunks):
        request, end = chunk.sequence.request, chunk.start + chunk.length
        columns["tokens"][row, : chunk.length] = request.prompt_token_ids[chunk.start : end]
        columns["starts"][row], columns["lengths"][row] = chunk.start, chunk.length
        columns["slots"][row] = chunk.slot
    return columns


def score_targets(chunks: Rows[PrefillChunk], rows: int, length: int) -> Int[np.ndarray, "R T"]:
    """`[rows, length]`: the token that follows each of the chunks' tokens in its prompt."""
    targets = np.zeros((rows, length), np.int32)
    for row, chunk in enumerate(chunks):
        following = chunk.sequence.request.prompt_token_ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        targets[row, : len(following)] = following
    return targets


def first_token_columns(chunks: Rows[PrefillChunk], rows: int, pool_rows: int) -> dict[str, Any]:
    """The fields of `FirstTokenInput`: the ends of the prompts that end in these chunks."""
    slots, lengths = np.full(rows, pool_rows, np.int32), np.zeros(rows, np.int32)
    for row, chunk in enumerate(chunks):
        if chunk.is_last:
            slots[row], lengths[row] = chunk.slot, chunk.start + chunk.length
    sampling = sampling_columns([chunk.sequence.request for chunk in chunks], rows)
    return {"slots": slots, "lengths": lengths, "sampling": sampling}


def sampling_columns(requests: Rows[Request], rows: int) -> dict[str, Any]:
    """The fields of `SamplingState`; rows past the requests ask for nothing."""
    columns = {
        "temperature": np.zeros(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "seed": np.zeros((rows, 2), np.uint32),
        "min_position": np.zeros(rows, np.int32),
        "last_position": np.full(rows, NO_LIMIT, np.int32),
        "stop_ids": np.full((rows, MAX_STOP_IDS), -1, np.int32),
        "wants_logprobs": np.zeros(rows, np.bool),
    }
    for row, request in enumerate(requests):
        params, stop_ids = request.params, sorted(request.params.stop_ids)
        columns["temperature"][row], columns["top_p"][row] = params.temperature, params.top_p
        columns["top_k"][row], columns["min_p"][row] = min(params.top_k, NO_LIMIT), params.min_p
        columns["seed"][row] = params.seed & 0xFFFFFFFF, params.seed >> 32
        columns["min_position"][row] = min(len(request.prompt_token_ids) + params.min_tokens, NO_LIMIT)
        if params.max_tokens is not None:
            last = len(request.prompt_token_ids) + params.max_tokens - 1
            columns["last_position"][row] = min(last, NO_LIMIT)
        columns["stop_ids"][row, : len(stop_ids)] = stop_ids
        columns["wants_logprobs"][row] = params.logprobs is not None
    return columns
