"""Sampling state of a batch as numpy arrays, made on the host from the parameters of its requests."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..core.arrays import HostArray
from ..core.request import Request
from ..core.sampling_limits import NO_LIMIT
from ..core.sampling_params import NUMBER_COLUMNS, SAMPLING_COLUMNS

_SMALLEST_NORMAL: Final = float(np.finfo(np.float32).tiny)
"""Processors may flush smaller numbers to 0."""


def sampling_columns(requests: Sequence[Request], rows: int) -> dict[str, HostArray]:
    """Returns the arrays of `SamplingState` by name.

    Args:
      requests: Requests of the first rows; the other rows get neutral values.
      rows: Number of rows. `is_masked` is False in all of them.
    """
    columns = {
        name: np.full(column.shape(rows), column.neutral, column.dtype) for name, column in SAMPLING_COLUMNS.items()
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
