"""Values that the scheduler returns."""

from dataclasses import dataclass

from ..prefix_cache.cache import PrefixKey
from ..types.request import Batch, TokenOutput
from .prefetcher import Fetch

type RequestOutput = tuple[str, TokenOutput]
"""A request's id and its output."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions for one step.

    Attributes:
      batch: Next batch for the device; None if there is nothing to run.
      failed: Last outputs of requests that ended with an error before they could be part of the batch: they timed out,
        could not be started, or their output constraint failed.
      fetches: Searches on disk that are to begin, for prompts of waiting requests.
    """

    batch: Batch | None
    failed: tuple[RequestOutput, ...] = ()
    fetches: tuple[Fetch, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedState:
    """State of a request that has just ended. The state stays in the slot until the next batch is planned.

    Attributes:
      history: All tokens that the state covers.
      slot: Slot that the request had.
    """

    history: PrefixKey
    slot: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Results of a batch.

    Attributes:
      outputs: Outputs of the batch's requests, in the order of its rows.
      finished: States of requests that ended, if the prefix cache keeps inexact states.
    """

    outputs: tuple[RequestOutput, ...]
    finished: tuple[FinishedState, ...] = ()
