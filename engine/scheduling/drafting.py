"""Decides which requests have drafted tokens, and counts them. Outputs do not depend on it, only their time does."""

from collections.abc import Sequence

from ..types.output_constraint import Forced
from ..types.request import DecodeBatch, RowResult
from ..types.speculation import DraftCounts, Speculation
from .draft_switch import DraftSwitch
from .repetition import Repetition
from .running_request import RunningRequest


class Drafting:
    """Lets requests draft tokens that their constraint forces or while they repeat themselves, if drafts save time.

    A batch without drafts runs the same program as without speculation, so that new text takes the same time.

    Attributes:
      counts: Total drafted and accepted tokens; None without speculation.

    Args:
      settings: Settings of drafts; None drafts none.
    """

    def __init__(self, settings: Speculation | None) -> None:
        self.counts = None if settings is None else DraftCounts(accepted=(0,) * settings.num_tokens)
        self._settings = settings
        self._switch = DraftSwitch()

    def drafts(self, requests: Sequence[RunningRequest | None], steps: int) -> tuple[int | Forced, ...]:
        """Returns `DecodeBatch.drafts`.

        Args:
          requests: Requests of the batch; None for one that must have no drafts.
          steps: Maximum number of rounds.
        """
        settings = self._settings
        if settings is None or not self._switch.is_on(len(requests), steps):
            return ()
        drafts = tuple(_drafts(each, settings.num_tokens) for each in requests)
        return drafts if any(drafts) else ()

    def record(self, batch: DecodeBatch, results: Sequence[RowResult], seconds: float) -> None:
        """Counts the drafts of a batch, and measures whether they save time.

        Args:
          batch: The batch.
          results: Results of its rows.
          seconds: Duration of the batch.
        """
        if self.counts is None:
            return
        drafts = [result.drafts for result in results if result.drafts is not None]
        for each in drafts:
            self.counts = self.counts.plus(each)
        num_tokens = [len(result.token_ids) for result in results]
        self._switch.record(batch.steps, num_tokens, seconds, has_drafts=bool(drafts))

    def add(self, running: RunningRequest, token_ids: Sequence[int]) -> None:
        """Adds generated tokens of a request."""
        if self._settings is None:
            return
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
