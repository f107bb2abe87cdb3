"""One stream per request: its choices run on the engine, and their deltas are merged for one reader."""

import asyncio
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Final

from ...engine import (
    AsyncEngine,
    EngineDeadError,
    FinishReason,
    Request,
    TokenOutput,
)
from ..constraints.tool_calls import CallReader, join_calls
from ..errors import kinds
from ..errors.request_errors import ApiError, request_aborted
from ..observability.request_metrics import RequestRecord, RequestTracker
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from .delta import Delta, DeltaJoiner
from .spec import GenerationSpec

MAX_UNREAD_BYTES: Final = 256 * 2**10
"""Maximum estimated memory of a choice's deltas that the client does not read: some 10,000 tokens, or 100 with 20
logprobs each. A choice that exceeds it ends, which frees its slot.

Deltas that arrive while the reader waits for its turn on the event loop do not count. A reader that has taken a delta
is sending it: if it does not return, its client does not read.
"""

type TakeText = Callable[[int, str, int], bool]
"""Takes a choice's new text, given the choice's index, the text and the number of its tokens, and returns whether it
was taken. It is called on the event loop."""


class SentResponse:
    """Part of one response that the client has received.

    Args:
      num_choices: Number of the engine's requests.

    Attributes:
      num_tokens: Number of generated tokens whose text was sent whole, by engine request.
      order: Index of the engine's request behind each choice of the response. With `best_of`, not all become choices.
    """

    __slots__ = ("num_tokens", "order")

    def __init__(self, num_choices: int) -> None:
        self.num_tokens = array("i", bytes(4 * num_choices))
        self.order: Sequence[int] = range(num_choices)


class Mailbox[Item]:
    """Queue between callbacks and one reader on the same event loop. A cancelled reader loses nothing.

    Unlike with `asyncio.Queue`, a callback can offer a text to a waiting reader without waking its task.

    Attributes:
      has_reader: Whether the reader waits for an item, or was cancelled while it did.
      take: Takes text immediately, if it can; None if the reader takes only items.
    """

    def __init__(self) -> None:
        self.has_reader = False
        self.take: TakeText | None = None
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        """Number of items that were not taken."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Adds an item, and wakes the reader."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def offer(self, index: int, text: str, num_tokens: int) -> bool:
        """Offers text to `take` if the reader waits, in which case there is no item; returns whether it was taken."""
        waiter, take = self._waiter, self.take
        return take is not None and waiter is not None and not waiter.done() and take(index, text, num_tokens)

    async def get(self, timeout_s: float | None) -> Item | None:
        """Returns the next item, or None after the timeout. A timeout of None waits forever.

        If an item is already there, other tasks get a turn first: a reader that has fallen behind must not block them.
        """
        self.has_reader = True
        if self._items:
            await asyncio.sleep(0)
        else:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            except TimeoutError:
                pass
            finally:
                self._waiter = None
        self.has_reader = False
        return self._items.popleft() if self._items else None


class ChoiceStream:
    """Sink of one choice's outputs: decodes them on arrival, and joins the deltas that were not taken yet.

    Decoding does not wait for the reader, since a stop string must free the slot immediately.

    Attributes:
      is_open: Whether more deltas may come.

    Args:
      index: Index of the choice.
      spec: Spec of all choices of the response.
      tokenizer: Tokenizer of the model.
      record: Record of the engine's request.
      mailbox: Mailbox of the response's reader; receives errors, and this stream when it has a delta to take.
      sent: Counts the tokens that the reader has taken.
      abort: Ends the engine's request.
      max_unread_bytes: Maximum estimated memory of deltas that a slow reader leaves unread.
    """

    def __init__(
        self,
        index: int,
        spec: GenerationSpec,
        tokenizer: Tokenizer,
        record: RequestRecord,
        mailbox: "Mailbox[ChoiceStream | Exception]",
        sent: SentResponse,
        abort: Callable[[], None],
        max_unread_bytes: int,
    ) -> None:
        self.is_open = True
        self._index = index
        self._spec = spec
        self._detokenizer = Detokenizer(tokenizer, spec.stop, include_stop=spec.include_stop)
        self._calls = CallReader() if spec.may_call else None
        self._has_text_only = not (spec.stop or spec.may_call or spec.sends_ids)
        self._num_tokens = self._num_sent = 0
        self._record = record
        self._mailbox = mailbox
        self._sent = sent
        self._abort = abort
        self._max_unread_bytes = max_unread_bytes
        self._unread: Delta | DeltaJoiner | None = None
        self._context = copy_context()  # context of the HTTP request, which is the parent of its choices' spans
        if spec.earlier_ids:  # another replica has sent their text
            self._decode(TokenOutput(spec.earlier_ids))

    def put(self, item: TokenOutput | Exception) -> None:
        """Takes the engine's next output; see `OutputSink`."""
        if not self.is_open:
            return
        if isinstance(item, Exception):
            self._fail(item, item)
        elif item.finish_reason is FinishReason.ABORT:
            self._fail(request_aborted())
        elif item.error is not None:
            self._fail(item.error, item.error)
        else:
            self._advance(item)

    def take(self) -> Delta:
        """Returns all deltas since the last call as one."""
        unread, self._unread = self._unread, None
        assert unread is not None
        if isinstance(unread, DeltaJoiner):
            delta = unread.take()
        else:
            delta = replace(unread, calls=join_calls(unread.calls)) if unread.calls else unread
        self._sent.num_tokens[self._index] = delta.num_sent
        return delta

    def close(self) -> None:
        """Ends the choice, which must be open, and frees its slot."""
        self._end()
        self._abort()

    def _advance(self, output: TokenOutput) -> None:
        try:
            delta = self._untaken(output)
            if delta is None:
                return
        except Exception as error:  # a bug here must not end the requests that are delivered after this one
            self._fail(error, error)
            self._abort()
            return
        if self._unread is None:  # the usual case: the reader takes each delta alone
            self._unread = delta
            self._mailbox.put(self)
        elif not self._join(self._unread, delta):
            self._fail(ApiError(kinds.CLIENT_TOO_SLOW, "the stream was read too slowly"))
            self._abort()
            return
        if delta.finish_reason is not None:
            self._end()
        if output.finish_reason is None and not self.is_open:  # a stop string is complete
            self._abort()

    def _join(self, unread: Delta | DeltaJoiner, delta: Delta) -> bool:
        """Joins a delta with the unread deltas; returns False if they are too many."""
        if isinstance(unread, Delta):
            self._unread = joiner = DeltaJoiner()
            joiner.add(unread)
        else:
            joiner = unread
        if not self._mailbox.has_reader and joiner.num_bytes >= self._max_unread_bytes:
            return False
        joiner.add(delta)
        return True

    def _untaken(self, output: TokenOutput) -> Delta | None:
        """Returns the delta of an output; None if the reader has taken it already.

        Most deltas have only text, and most of these are taken, so that no `Delta` is built for them.
        """
        num_tokens = len(output.token_ids)
        is_text = output.logprobs is None and output.prompt_logprobs is None and not output.num_cached
        delta = None
        if is_text and self._has_text_only and output.finish_reason is None:
            text = self._detokenizer.push(output.token_ids)
            self._num_sent = self._detokenizer.num_sent
            self._record.add(output, num_tokens)
        else:
            delta = self._decode(output)
            text, num_tokens = delta.text, len(delta.token_ids)
            self._record.add(output, num_tokens, delta.finish_reason)
            if delta.finish_reason is not None or delta.calls or not is_text:
                return delta
        if self._mailbox.offer(self._index, text, num_tokens):
            self._sent.num_tokens[self._index] = self._num_sent
            return None
        return delta or Delta(self._index, text, token_ids=output.token_ids, num_sent=self._num_sent)

    def _decode(self, output: TokenOutput) -> Delta:
        """Returns the delta of an output. It also has a finish reason if a stop string is complete."""
        delta = self._detokenize(output)
        self._num_tokens += len(delta.token_ids)
        if self._spec.sends_ids:
            delta.num_sent = self._num_tokens
        if self._calls is not None:
            delta = self._parse_calls(self._calls, delta)
        self._num_sent = delta.num_sent
        return delta

    def _detokenize(self, output: TokenOutput) -> Delta:
        detokenizer, fork = self._detokenizer, self._record.request.fork_of
        finish_reason: FinishReason | None = output.finish_reason
        stop_reason: int | str | None = output.stop_reason
        hides_last = finish_reason is FinishReason.STOP and not self._spec.include_stop
        visible, num_taken = output.token_ids[:-1] if hides_last else output.token_ids, len(output.token_ids)
        if self._spec.stop:
            text, num_taken = self._text_until_stop(visible, num_taken)
            text += "" if finish_reason is None else detokenizer.finish()
        else:
            text = detokenizer.push(visible) if finish_reason is None else detokenizer.finish(visible)
        if detokenizer.stop_string is not None:
            finish_reason, stop_reason = FinishReason.STOP, detokenizer.stop_string
        return Delta(
            index=self._index,
            text=text,
            token_ids=output.token_ids[:num_taken],
            logprobs=(output.logprobs or ())[:num_taken],
            prompt_logprobs=output.prompt_logprobs,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached=0 if fork is not None or self._spec.earlier_ids else output.num_cached,
            num_sent=detokenizer.num_sent + (hides_last and detokenizer.stop_string is None),
            prediction=output.prediction,
        )

    def _text_until_stop(self, visible: tuple[int, ...], num_tokens: int) -> tuple[str, int]:
        """Returns the text of an output's visible tokens, and how many of its tokens belong to the choice.

        Tokens are decoded one by one, so that tokens after a stop string don't count.
        """
        text, num_taken = "", 0
        while num_taken < num_tokens and self._detokenizer.stop_string is None:
            text += self._detokenizer.push(visible[num_taken : num_taken + 1])
            num_taken += 1
        return text, num_taken

    def _parse_calls(self, calls: CallReader, delta: Delta) -> Delta:
        """Returns the delta with tool calls instead of their text. Text that the parser holds back is not sent."""
        is_last = delta.finish_reason is not None
        text, pieces = calls.read(delta.text, is_last=is_last)
        called = delta.finish_reason is FinishReason.STOP and calls.is_complete
        num_sent = delta.num_sent if is_last or not calls.is_holding else self._num_sent
        return replace(delta, text=text, calls=pieces, called=called, num_sent=num_sent)

    def _fail(self, error: Exception, cause: Exception | None = None) -> None:
        """Ends the choice with an error for the reader.

        Args:
          cause: Error that ended the request; None if the request was aborted.
        """
        self._end(cause)
        self._mailbox.put(error)

    def _end(self, cause: Exception | None = None) -> None:
        self.is_open = False
        self._context.run(self._record.end, cause)


class Generation:
    """Choices that run concurrently; an iterator over their deltas in order of arrival.

    Deltas of a choice that arrive while an earlier one waits for the reader are joined with it: a slow reader gets
    fewer, larger deltas. A reader that is cancelled while it waits loses nothing. A generation must be closed, which
    frees the slots of all unfinished choices.

    Args:
      num_choices: Number of choices.

    Attributes:
      sent: Part of the response that the reader has taken.
    """

    def __init__(self, num_choices: int) -> None:
        self.sent = SentResponse(num_choices)
        self._mailbox = Mailbox[ChoiceStream | Exception]()
        self._choices: list[ChoiceStream] = []
        self._records: Sequence[RequestRecord] = ()

    @classmethod
    def start(
        cls,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        tracker: RequestTracker,
        spec: GenerationSpec,
        requests: Sequence[Request],
        max_unread_bytes: int,
    ) -> "Generation":
        """Submits the requests of a spec to the engine. No other function does.

        Args:
          tracker: Records the engine's requests.
          requests: Requests from `Service.requests`.
          max_unread_bytes: Maximum estimated memory of a choice's deltas that a slow reader leaves unread.
        """
        generation = cls(len(requests))
        generation._records = records = tracker.track(requests)
        mailbox, sent, is_chat = generation._mailbox, generation.sent, spec.prompts[0].is_chat
        for index, record in enumerate(records):
            record.num_earlier, record.is_chat = len(spec.earlier_ids), is_chat
            abort = partial(engine.abort, record.request.id)
            stream = ChoiceStream(index, spec, tokenizer, record, mailbox, sent, abort, max_unread_bytes)
            generation._choices.append(stream)
            try:
                engine.submit(record.request, stream)
            except (EngineDeadError, ValueError) as error:
                stream.put(error)
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
          timeout_s: Seconds to wait; None waits forever.
          take: Callback that is offered each text-only delta before the waiting reader is woken for it.

        Raises:
          StopAsyncIteration: All choices have ended.
          ApiError: The request was aborted, or the client reads too slowly.
          Exception: Any error of a choice.
        """
        if not self._mailbox and not [choice for choice in self._choices if choice.is_open]:
            raise StopAsyncIteration
        self._mailbox.take = take
        item = await self._mailbox.get(timeout_s)
        if item is None:
            return None
        if isinstance(item, Exception):
            raise item
        return item.take()

    def abort(self) -> int:
        """Ends the unfinished choices, and returns their number. The reader gets an `ApiError`."""
        num_unfinished = self._end()
        if num_unfinished:
            self._mailbox.put(request_aborted())
        return num_unfinished

    def discard(self) -> None:
        """Leaves the usage of all choices uncounted: the client gets an error, or another replica runs them again."""
        for record in self._records:
            record.is_left = True

    def close(self) -> None:
        """Ends the unfinished choices, and reports all as settled. Call it once."""
        self._end()
        for record in self._records:
            record.settle()

    def _end(self) -> int:
        unfinished = [choice for choice in self._choices if choice.is_open]
        for choice in unfinished:
            choice.close()
        return len(unfinished)


async def collect(generation: Generation) -> list[Delta]:
    """Waits until all choices have ended, and returns them whole, in order of their index."""
    choices: defaultdict[int, DeltaJoiner] = defaultdict(DeltaJoiner)
    async for delta in generation:
        choices[delta.index].add(delta)
    return [choices[index].take() for index in sorted(choices)]
