"""Decides which requests have drafted tokens, and counts them. Outputs do not depend on it, only their time does.

Requests draft while their last tokens repeat earlier ones, and while batches with drafts take less time than without.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..types.config import DraftCounts, Speculation
from ..types.output_constraint import Forced
from ..types.request import DecodeBatch, RowResult
from .prefill_budget import updated
from .running_request import Repetition, RunningRequest

_FIRST_PAUSE: Final = 4
"""Number of batches without drafts after drafts have taken more time than they saved."""

_MAX_PAUSE: Final = 512
"""Number beyond which pauses no longer double."""

_TRIAL: Final = 2
"""Number of batches with drafts after which they are judged."""

_TERM: Final = 128
"""Number of batches with drafts after which one without them is measured again."""

_WEIGHT: Final = 1 / 4
"""Weight of a new measurement in a mean, unless it is one of the first, which weigh the same."""


class Drafting:
    """Lets requests draft tokens that their constraint forces or while they repeat themselves, if drafts save time.

    A batch without drafts runs the same program as without speculation, so that new text takes the same time.

    Attributes:
      counts: Total drafted and accepted tokens.
    """

    def __init__(self, settings: Speculation) -> None:
        self.counts = DraftCounts(accepted=(0,) * settings.num_tokens)
        self._settings = settings
        self._switch = DraftSwitch()

    def drafts(self, requests: Sequence[RunningRequest | None], steps: int) -> tuple[int | Forced, ...]:
        """Returns `DecodeBatch.drafts`.

        Args:
          requests: Requests of the batch; None for one that must have no drafts.
          steps: Maximum number of rounds.
        """
        if not self._switch.is_on(len(requests), steps):
            return ()
        drafts = tuple(_drafts(each, self._settings.num_tokens) for each in requests)
        return drafts if any(drafts) else ()

    def record(self, batch: DecodeBatch, results: Sequence[RowResult], seconds: float) -> None:
        """Counts the drafts of a batch, and measures whether they save time.

        Args:
          batch: The batch.
          results: Results of its rows.
          seconds: Duration of the batch.
        """
        drafts = [result.drafts for result in results if result.drafts is not None]
        for each in drafts:
            self.counts = self.counts.plus(each)
        num_tokens = [len(result.token_ids) for result in results]
        self._switch.record(batch.steps, num_tokens, seconds, has_drafts=bool(drafts))

    def add(self, running: RunningRequest, token_ids: Sequence[int]) -> None:
        """Adds generated tokens of a request."""
        if running.repetition is None:
            running.repetition = Repetition(running.request.searched_token_ids, 2 * self._settings.min_match)
            if running.request.replay is not None:
                running.repetition.add(running.request.replay.token_ids)
        running.repetition.add(token_ids)


def _drafts(running: RunningRequest | None, most: int) -> int | Forced:
    if running is None:
        return 0
    if running.constraint is not None:
        return 0 if running.constraint.forced is None else running.constraint.forced.first(most)
    return most if running.repetition is not None and running.repetition.is_repeating else 0


@dataclass(slots=True)
class _Record:
    """Measurements of batches with one number of requests and of rounds.

    Attributes:
      plain_s: Mean seconds of a round without drafts; None if none was measured.
      cost: Mean ratio of the time of batches with drafts to that of their tokens without; None if none was measured.
      num_drafted: Number of batches with drafts since the last pause.
      pause: Number of batches without drafts until the next one with them.
      next_pause: Length of the next pause.
    """

    plain_s: float | None = None
    cost: float | None = None
    num_drafted: int = 0
    pause: int = 0
    next_pause: int = _FIRST_PAUSE


class DraftSwitch:
    """Turns drafts off while they take more time than they save, separately for each size of a batch.

    Drafts are judged by what their batches gained: a batch that took s seconds for n tokens of each request costs
    s / (n · t), where t is the time of a round without drafts. Above 1, drafts pause, and twice as long each time.
    """

    def __init__(self) -> None:
        self._records: defaultdict[tuple[int, int], _Record] = defaultdict(_Record)

    def is_on(self, num_requests: int, steps: int) -> bool:
        """Returns whether a batch may have drafts.

        Args:
          num_requests: Number of requests of the batch.
          steps: Maximum number of rounds.
        """
        return self._records[num_requests, steps].pause == 0

    def record(self, steps: int, num_tokens: list[int], seconds: float, *, has_drafts: bool) -> None:
        """Adds the duration of a batch.

        Args:
          steps: Maximum number of rounds.
          num_tokens: Number of tokens of each request.
          seconds: Duration of the batch.
          has_drafts: Whether any tokens were drafted.
        """
        if not any(num_tokens):
            return
        record = self._records[len(num_tokens), steps]
        if has_drafts:
            _add_drafted(record, sum(num_tokens) / len(num_tokens), seconds)
        else:
            record.plain_s = updated(record.plain_s, seconds / max(num_tokens), _WEIGHT)
            record.pause = max(record.pause - 1, 0)


def _add_drafted(record: _Record, num_tokens: float, seconds: float) -> None:
    """Adds a batch with drafts and the mean tokens of its requests; begins a pause if one is due."""
    record.num_drafted += 1
    if record.plain_s is None:
        record.pause = 1 if record.num_drafted >= _TRIAL else 0
        return
    record.cost = updated(record.cost, seconds / (num_tokens * record.plain_s), max(_WEIGHT, 1 / record.num_drafted))
    if record.num_drafted >= _TRIAL and record.cost > 1:
        record.pause, record.next_pause = record.next_pause, min(2 * record.next_pause, _MAX_PAUSE)
        record.cost, record.num_drafted = None, 0
    elif record.num_drafted >= _TERM:
        record.pause, record.next_pause, record.num_drafted = 1, _FIRST_PAUSE, 0
