"""One stream per request: the choices that run on the engine, merged for one reader."""

import asyncio
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ...engine import AsyncEngine, EngineDeadError, Request, SamplingParams, pack_ids
from ..constraints.grammar import Grammar, GrammarConstraint
from ..errors.request_errors import request_aborted
from ..observability.request_metrics import RequestRecord, RequestTracker
from ..text.tokenizer import Tokenizer
from .admission import Admission
from .choice_stream import MAX_UNREAD_BYTES, ChoiceStream, DeltaJoiner
from .delta import Delta
from .spec import Choice

type TakeText = Callable[[int, str, int], bool]
"""Takes a choice's new text, given the choice's index, the text and the number of its tokens, and returns whether it
was taken. It is called on the event loop."""


@dataclass(slots=True)
class SentResponse:
    """Part of one response that the client has received.

    Attributes:
      num_tokens: Number of generated tokens whose text was sent whole, by engine request.
      order: Index of the engine's request behind each choice of the response; None if they are in the same order, as in
        all responses without `best_of`.
    """

    num_tokens: "array[int]"
    order: "array[int] | None" = None

    def reorder(self, order: Sequence[int]) -> None:
        """Records which of the engine's requests became the response's choices."""
        if list(order) != list(range(len(self.num_tokens))):
            self.order = array("i", order)


class Generation:
    """Choices that run concurrently; an iterator over their deltas in order of arrival.

    Deltas of a choice that arrive while an earlier one waits for the reader are joined with it: a slow reader gets
    fewer, larger deltas. A reader that is cancelled while it waits loses nothing. A generation must be closed, which
    frees the slots of all unfinished choices.

    Args:
      num_choices: Number of choices.
      release: Releases the memory of the work.

    Attributes:
      sent: Part of the response that the reader has taken.
    """

    def __init__(self, num_choices: int, release: Callable[[], None]) -> None:
        self._release = release
        self.sent = SentResponse(array("i", bytes(4 * num_choices)))
        self._inbox = _Inbox(self.sent)
        self._choices: list[ChoiceStream] = []
        self._records: Sequence[RequestRecord] = ()

    @classmethod
    def start(
        cls,
        own: Admission,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        tracker: RequestTracker,
        request_id: str,
        choices: Sequence[Choice],
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> "Generation":
        """Submits choices to the engine. No other function does.

        Args:
          own: Admission of the work, whose memory stays charged until the generation is closed.
          tracker: Records the engine's requests.
          request_id: Id of the request, which has all choices.
          max_unread_bytes: Maximum estimated memory of a choice's deltas that a slow reader leaves unread.
        """
        generation = cls(len(choices), own.hold())
        generation._records = records = tracker.track([_request(own, choice, request_id) for choice in choices])
        for choice, record in zip(choices, records, strict=True):
            record.num_earlier, record.is_chat = len(choice.earlier_ids), choice.prompt.is_chat
            generation._start(engine, tokenizer, choice, record, max_unread_bytes)
        return generation

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Delta:
        """Returns the next delta; see `next_within`."""
        delta = await self.next_within(None)
        assert delta is not None
        return delta

    async def next_within(self, timeout_s: float | None, take: TakeText | None = None) -> Delta | None:
        """Returns the next delta, or None after the timeout.

        Args:
          timeout_s: Seconds to wait, the same in all calls; None waits forever.
          take: Callback that is offered each text-only delta before the waiting reader is woken for it.

        Raises:
          StopAsyncIteration: All choices have ended.
          ApiError: The request was aborted, or the client reads too slowly.
          Exception: Any error of a choice.
        """
        if not self._inbox and not self._is_open:
            raise StopAsyncIteration
        self._inbox.take = take
        item = await self._inbox.get(timeout_s)
        if item is None:
            return None
        if isinstance(item, Exception):
            raise item
        delta = item.take()
        self.sent.num_tokens[delta.index] = delta.num_sent
        return delta

    @property
    def _is_open(self) -> bool:
        """Whether more deltas may come."""
        for choice in self._choices:  # noqa: SIM110 - `any` would make a generator for each event
            if choice.is_open:
                return True
        return False

    def abort(self) -> int:
        """Ends the unfinished choices, and returns their number. The reader gets an `ApiError`."""
        num_unfinished = self._end()
        if num_unfinished:
            self._inbox.put(request_aborted())
        return num_unfinished

    def discard(self) -> None:
        """Leaves the usage of all choices uncounted: the client gets an error, or another replica runs them again."""
        for record in self._records:
            record.is_left = True

    def close(self) -> None:
        """Ends the unfinished choices, and reports all as settled."""
        self._inbox.close()
        self._end()
        self._release()
        for record in self._records:
            record.settle()

    def _end(self) -> int:
        unfinished = [choice for choice in self._choices if choice.is_open]
        for choice in unfinished:
            choice.close()
        return len(unfinished)

    def _start(
        self,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        choice: Choice,
        record: RequestRecord,
        max_unread_bytes: int,
    ) -> None:
        abort = partial(engine.abort, record.request.id)
        stream = ChoiceStream(choice, tokenizer, record, self._inbox, abort, max_unread_bytes)
        self._choices.append(stream)
        try:
            engine.submit(record.request, stream)
        except (EngineDeadError, ValueError) as error:
            stream.put(error)


def engine_request_id(response_id: str, index: int) -> str:
    """Returns the id of the engine's request for a choice of a response."""
    return f"{response_id}-{index}"


def _request(own: Admission, choice: Choice, request_id: str) -> Request:
    """Returns the engine's request for a choice.

    Args:
      own: Admission of the work.
      request_id: Id of the request, which has all choices.
    """
    prompt_ids, read = choice.prompt.token_ids, choice.earlier_ids if choice.replay is None else ()
    return Request(
        engine_request_id(request_id, choice.index),
        pack_ids(prompt_ids, read) if read else prompt_ids,
        _remaining(choice.params, len(read)),
        stepwise=bool(choice.stop),
        fork_of=None if choice.fork_of is None else engine_request_id(request_id, choice.fork_of),
        constraint=None if choice.grammar is None else _constraint(choice.grammar, read),
        tenant=own.owner,
        priority=choice.scheduling.priority,
        start_by=choice.scheduling.start_by,
        deadline=choice.scheduling.deadline,
        preemptible=own.preemptible,
        cache_salt=choice.cache_salt,
        state=choice.state,
        state_is_imported=choice.state_is_imported,
        replay=choice.replay,
        predicted_token_ids=choice.predicted_ids,
    )


def _remaining(params: SamplingParams, num_generated: int) -> SamplingParams:
    """Returns the sampling parameters for the remaining tokens."""
    if not num_generated:
        return params
    max_tokens = None if params.max_tokens is None else params.max_tokens - num_generated
    return replace(params, max_tokens=max_tokens, min_tokens=max(params.min_tokens - num_generated, 0))


def _constraint(grammar: Grammar, generated: Sequence[int]) -> GrammarConstraint:
    """Returns the constraint after the tokens that were already generated."""
    constraint = grammar.constraint()
    for token_id in generated:
        constraint.advance(token_id)
    return constraint


async def collect(generation: Generation) -> list[Delta]:
    """Waits until all choices have ended, and returns them whole, in order of their index."""
    choices: defaultdict[int, DeltaJoiner] = defaultdict(DeltaJoiner)
    async for delta in generation:
        choices[delta.index].add(delta)
    return [choices[index].take() for index in sorted(choices)]


class Mailbox[Item]:
    """Queue between callbacks and one reader on the same event loop. A cancelled reader loses nothing.

    `asyncio.Queue` with `asyncio.timeout` does the same, but sets a timer for each item. This class uses one timer for
    all waits of a reader.

    Attributes:
      has_reader: Whether the reader waits for an item, or was cancelled while it did.
    """

    def __init__(self) -> None:
        self.has_reader = False
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Number of items that were not taken."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Adds an item, and wakes the reader."""
        self._items.append(item)
        self._wake()

    async def get(self, timeout_s: float | None) -> Item | None:
        """Returns the next item, or None after the timeout, which is the same in all calls; None waits forever.

        If an item is already there, other tasks get a turn first: a reader that has fallen behind must not block them.
        """
        self.has_reader = True
        if self._items:
            await asyncio.sleep(0)
        else:
            loop = asyncio.get_running_loop()
            if self._timer is None and timeout_s is not None:
                self._set_timer(timeout_s, timeout_s)
            self._waiter, self._waits_since = loop.create_future(), loop.time()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self.has_reader = False
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, seconds: float, timeout_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer, timeout_s)

    def _on_timer(self, timeout_s: float) -> None:
        """Wakes a reader that has waited for the timeout; otherwise sets the timer again."""
        self._timer = None
        if self._waiter is None:
            return
        left = self._waits_since + timeout_s - asyncio.get_running_loop().time()
        if left > 0:
            self._set_timer(left, timeout_s)
        else:
            self._wake()


class _Inbox(Mailbox[ChoiceStream | Exception]):
    """Mailbox of a generation's reader.

    Args:
      sent: Counts the tokens that `take` takes.

    Attributes:
      take: Takes text immediately, if it can; see `Generation.next_within`.
    """

    def __init__(self, sent: SentResponse) -> None:
        super().__init__()
        self.take: TakeText | None = None
        self._sent = sent

    def offer(self, index: int, text: str, num_tokens: int, num_sent: int) -> bool:
        """Offers text to `take` if the reader waits, in which case the mailbox is empty.

        The timeout starts over if the text is taken. See `choice_stream.Reader`.
        """
        waiter, take = self._waiter, self.take
        if take is None or waiter is None or waiter.done() or not take(index, text, num_tokens):
            return False
        self._sent.num_tokens[index] = num_sent
        self._waits_since = asyncio.get_running_loop().time()
        return True
