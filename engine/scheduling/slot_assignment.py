"""Gives slots to waiting requests, and takes them back when requests end."""

from collections import deque
from contextlib import suppress
from typing import Final

from ..core.errors import RequestFailedError, RoostError
from ..core.request import Request
from .cached_prefixes import CachedPrefixes
from .masks import update_mask
from .plan import RequestOutput, error_output
from .prefetch import Prefetcher
from .running_request import RunningRequest
from .slots import SlotPool, SlotReserve
from .waiting_queue import WaitingQueue

_NOT_STARTED: Final = "the engine could not start the request; others are not affected"


class SlotAssignment:
    """Assigns slots in the queue's order. A request keeps its slot until it ends.

    Attributes:
      running: Requests with a slot by id, oldest first.

    Args:
      pool: Free and used slots.
      reserve: Slots kept free for tenants with nothing running.
      queue: Requests without a slot.
      prefetcher: Searches on disk for waiting requests.
      prefixes: Restores the prompt of a request that gets a slot.
      mask_words: Number of words of a token mask.
    """

    def __init__(
        self,
        pool: SlotPool,
        reserve: SlotReserve,
        queue: WaitingQueue,
        prefetcher: Prefetcher,
        prefixes: CachedPrefixes,
        mask_words: int,
    ) -> None:
        self.running: dict[str, RunningRequest] = {}
        self._pool = pool
        self._reserve = reserve
        self._queue = queue
        self._prefetcher = prefetcher
        self._prefixes = prefixes
        self._mask_words = mask_words
        self._probes: deque[Request] = deque()

    @property
    def num_open(self) -> int:
        """Number of free slots that any tenant may take."""
        return self._reserve.num_open(self._pool.num_used)

    @property
    def has_probes(self) -> bool:
        """Whether probes wait for a slot."""
        return bool(self._probes)

    def probe(self, request: Request) -> None:
        """Queues a request of the engine's own ahead of all others. It uses no prefix cache."""
        self._probes.append(request)

    def assign(self, now: float) -> list[RequestOutput]:
        """Gives slots to as many requests as possible.

        Returns:
          Last outputs of requests that could not be started.
        """
        while self._probes and self._pool.num_free:
            probe = self._probes.popleft()
            self.running[probe.id] = RunningRequest(probe, self._pool.claim(), now)
        failed = []
        while self._pool.num_free and (request := self._queue.pop(self.may_start)) is not None:
            error = self._start(request, now)
            if error is not None:
                failed.append((request.id, error_output(error)))
        return failed

    def may_start(self, tenant: str) -> bool:
        """Returns whether a request of this tenant may get a slot now."""
        if self.num_open:
            return True
        return bool(self._pool.num_free) and all(each.request.tenant != tenant for each in self.running.values())

    def parent_of(self, request: Request) -> RunningRequest | None:
        """Returns the running request whose state this one may copy instead of prefilling the same prompt."""
        parent = None if request.fork_of is None else self.running.get(request.fork_of)
        if parent is None or not parent.can_fork or request.params.prompt_logprobs is not None:
            return None
        is_same = parent.request.prompt_token_ids == request.prompt_token_ids
        return (parent.parent or parent) if is_same else None

    def release(self, running: RunningRequest) -> None:
        """Takes a request's slot back, and charges its tenant for what the request really cost."""
        request = running.request
        del self.running[request.id]
        self._pool.release(running.slot)
        self._queue.correct_cost(request, running.num_prompt_dispatched + running.num_tokens)
        self._replace_parent(running)

    def _start(self, request: Request, now: float) -> RoostError | None:
        """Gives a request a slot. Returns the error that ends the request instead; no other request is affected."""
        slot = self._pool.claim()
        try:
            running = RunningRequest(request, slot, now, self.parent_of(request))
            self._prefixes.restore(running, self._prefetcher.take(request.id))
            update_mask(running, self._mask_words)
        except Exception as error:
            self._pool.release(slot)
            self._prefetcher.take(request.id)
            self._queue.correct_cost(request, 0)
            return error if isinstance(error, RoostError) else RequestFailedError(_NOT_STARTED)
        self.running[request.id] = running
        return None

    def _replace_parent(self, ended: RunningRequest) -> None:
        """Lets the first fork of an ended request prefill the prompt instead, for all other forks."""
        forks = [each for each in self.running.values() if each.parent is ended]
        for fork in forks:
            fork.parent = None if fork is forks[0] else forks[0]
            with suppress(Exception):  # a restored snapshot only saves work
                self._prefixes.restore(fork, self._prefetcher.take(fork.request.id))
