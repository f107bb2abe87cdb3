"""Decides the next batch and books results. Pure host Python: no clock, no thread, no JAX, no randomness."""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Rows

from .errors import QueueFullError
from .request import FinishReason, Request, TokenLogprobs, TokenOutput
from .sequence import Batch, DecodeBatch, PrefillBatch, PrefillChunk, RowResult, Sequence
from .slots import SlotPool


class Scheduler:
    """First come, first served into slots; a request that has a slot keeps it until it ends.

    Prefill and decode take turns while both have work: a decode waits for at most one prefill chunk.

    Args:
      slots: how many requests run at a time.
      max_queue: how many may wait for a slot.
      prefill_chunk: the most prompt tokens in one batch.
    """

    def __init__(self, slots: int, max_queue: int, prefill_chunk: int) -> None:
        self.slots = SlotPool(slots)
        self._max_queue = max_queue
        self._prefill_chunk = prefill_chunk
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Sequence] = {}
        self._decode_is_due = False

    def __repr__(self) -> str:
        return f"Scheduler(waiting={self.num_waiting}, running={self.num_running}, slots={self.slots!r})"

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with a slot."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
          QueueFullError: as many wait already as may, and no slot is free for one of them.
          ValueError: a request with this id is alive.
        """
        if request.id in self._running or any(r.id == request.id for r in self._waiting):
            raise ValueError(f"request id {request.id!r} is in use")
        if self.num_waiting >= self._max_queue + self.slots.num_free:
            raise QueueFullError(f"the queue is full ({self._max_queue} requests wait); try again later")
        self._waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Ends a request at once; its slot is free for the next batch. Says whether it was alive."""
        if request_id in self._running:
            self._release(self._running[request_id])
            return True
        alive = [r for r in self._waiting if r.id == request_id]
        for request in alive:
            self._waiting.remove(request)
        return bool(alive)

    def schedule(self) -> Batch | None:
        """Plans the next batch and books it as dispatched; None where there is nothing to do."""
        while self._waiting and self.slots.num_free:
            request = self._waiting.popleft()
            self._running[request.id] = Sequence(request, self.slots.claim())
        prefilling = next((s for s in self._running.values() if s.num_prompt_left), None)
        decoding = tuple(s for s in self._running.values() if s.can_decode)
        if prefilling is not None and not (self._decode_is_due and decoding):
            self._decode_is_due = True
            return self._plan_prefill(prefilling)
        self._decode_is_due = False
        return self._plan_decode(decoding) if decoding else None

    def commit(self, batch: Batch, results: Rows[RowResult]) -> list[tuple[str, TokenOutput]]:
        """Books what a batch gave. Rows whose request has ended since are dropped."""
        outputs = []
        for row, result in zip(_rows(batch), results, strict=True):
            sequence = row.sequence if isinstance(row, PrefillChunk) else row
            if self._running.get(sequence.request.id) is not sequence:
                continue
            if isinstance(row, PrefillChunk):
                sequence.prompt_logprobs.extend(result.prompt_logprobs)
            if result.token_id is None:
                continue
            output = self._commit_token(sequence, result.token_id, result.logprobs)
            if output.finish_reason is not None:
                self._release(sequence)
            outputs.append((sequence.request.id, output))
        return outputs

    def _plan_prefill(self, sequence: Sequence) -> PrefillBatch:
        length = min(sequence.num_prompt_left, self._prefill_chunk)
        chunk = PrefillChunk(sequence, sequence.slot, sequence.num_prompt_dispatched, length)
        sequence.num_prompt_dispatched += length
        if chunk.is_last:
            sequence.num_tokens_dispatched = 1
        return PrefillBatch((chunk,))

    def _plan_decode(self, sequences: tuple[Sequence, ...]) -> DecodeBatch:
        for sequence in sequences:
            sequence.num_tokens_dispatched += 1
        return DecodeBatch(sequences, tuple(s.slot for s in sequences))

    def _commit_token(self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        params = sequence.request.params
        prompt_logprobs = None
        if params.prompt_logprobs is not None and not sequence.num_tokens:
            prompt_logprobs = tuple(sequence.prompt_logprobs[: len(sequence.request.prompt_token_ids)])
        if params.max_tokens == 0:
            return TokenOutput(prompt_logprobs=prompt_logprobs, finish_reason=FinishReason.LENGTH)
        sequence.num_tokens += 1
        reason = None
        if token_id in params.stop_ids:
            reason = FinishReason.STOP
        elif sequence.num_tokens == params.max_tokens:
            reason = FinishReason.LENGTH
        stopped_by = token_id in params.stop_token_ids and token_id not in params.end_token_ids
        return TokenOutput(
            token_ids=(token_id,),
            logprobs=None if logprobs is None else (logprobs,),
            prompt_logprobs=prompt_logprobs,
            finish_reason=reason,
            stop_reason=token_id if stopped_by else None,
        )

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence.request.id]
        self.slots.release(sequence.slot)


def _rows(batch: Batch) -> Iterator[PrefillChunk | Sequence]:
    return iter(batch.chunks if isinstance(batch, PrefillBatch) else batch.sequences)
