"""Histories of new slots, in which the device looks drafts up, and which drafts came from a request's prediction."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..types.request import Request
from ..types.sampling_params import NO_TOKEN
from ..types.speculation import HISTORY, MAX_MATCH, UNUSED_PREDICTION, PredictionUse
from ..types.token_ids import pack_ids


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
