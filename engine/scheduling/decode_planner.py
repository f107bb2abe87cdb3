"""Plans decode steps, and the slot compaction that keeps them small."""

from collections.abc import Collection, Sequence

from ..core.batch import DecodeBatch
from ..core.config import StepLimits
from .running_request import RunningRequest
from .slots import SlotPool


class DecodePlanner:
    """Plans decode batches.

    Args:
      limits: Compiled sizes of a step.
      pool: Pool of the slots.
    """

    def __init__(self, limits: StepLimits, pool: SlotPool) -> None:
        self._limits = limits
        self._pool = pool

    def plan(
        self,
        requests: Sequence[RunningRequest],
        running: Collection[RunningRequest],
        *,
        waits_for_prefill: bool,
        may_compact: bool,
    ) -> DecodeBatch:
        """Plans tokens for some requests, and books them as dispatched.

        Args:
          requests: Requests that get tokens; at least one.
          running: All requests with a slot, oldest first.
          waits_for_prefill: Whether a prompt needs prefill. Then each request gets one token only.
          may_compact: Whether states may be moved to other slots.
        """
        moves = self._compact(requests, running) if may_compact else ()
        steps = 1 if waits_for_prefill else self._max_steps(running)
        for request in requests:
            request.num_tokens_dispatched += steps
        slots = tuple(each.slot for each in requests)
        masks = tuple((each.slot, each.mask) for each in requests if each.mask is not None)
        return DecodeBatch(tuple(each.request for each in requests), slots, steps, moves, masks)

    def _max_steps(self, running: Collection[RunningRequest]) -> int:
        """Returns the number of tokens per request; one token if the host has to see each before the next."""
        is_stepwise = any(each.request.stepwise or each.mask is not None for each in running)
        return 1 if is_stepwise else self._limits.decode_steps

    def _compact(
        self, requests: Sequence[RunningRequest], running: Collection[RunningRequest]
    ) -> tuple[tuple[int, int], ...]:
        """Moves states to lower slots if this step and later ones then need fewer rows; returns source and target."""
        rows = next((rows for rows in self._limits.decode_rows if rows >= len(running)), self._pool.size)
        if max(each.slot for each in requests) < rows:
            return ()
        moves = []
        for each in running:
            if each.slot >= rows:
                source, each.slot = each.slot, self._pool.claim()
                self._pool.release(source)
                moves.append((source, each.slot))
        return tuple(moves)
