"""From the engine's tokens to text: one choice at a time, and several side by side."""

import asyncio
import enum
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from ...engine import AsyncEngine, FinishReason, Mailbox, Request, SamplingParams, Snapshot, TokenOutput
from ..errors import client_too_slow, request_aborted
from ..observability.metrics import Metrics
from ..text.detokenizer import Detokenizer
from ..text.grammar import Grammar
from ..text.tokenizer import Tokenizer
from .delta import Delta, DeltaJoiner
from .prompts import Prompt
from .sent_answers import SentAnswer
from .tools import CallReader

MAX_UNREAD_BYTES: Final = 256 * 2**10
"""Estimated memory of each choice's deltas that a client does not take: some 10,000 tokens, or 100 with 20 logprobs
each. The slot of a choice that exceeds it works for nobody and is freed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is served; see `engine.Request`."""

    tenant: str = ""
    priority: int = 0
    start_by: float = math.inf
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to be made.

    Attributes:
      index: its place among the answers of the HTTP request.
      stop: Strings that end it; the choices of a request share one `StopStrings`.
      fork_of: the choice whose prompt is this one's too, and is read before.
      include_stop: whether the stop string, or the text of a stop token, is part of the answer.
      grammar: what the answer has to keep to, if anything.
      may_call: whether the answer may consist of calls of tools, which are then told from text.
      terms: the HTTP request's.
      cache_salt, state, state_is_imported: see `Request`.
      sends_ids: Whether token ids are the answer; then each counts as sent whatever its text is.
    """

    index: int
    prompt: Prompt
    params: SamplingParams
    stop: Sequence[str] = ()
    include_stop: bool = False
    fork_of: int | None = None
    grammar: Grammar | None = None
    may_call: bool = False
    terms: Terms = Terms()
    cache_salt: str = ""
    state: Snapshot | None = None
    state_is_imported: bool = False
    sends_ids: bool = False

    def request(self, request_id: str) -> Request:
        """What the engine is asked for.

        Args:
          request_id: of all choices together.
        """
        return Request(
            f"{request_id}-{self.index}",
            self.prompt.token_ids,
            self.params,
            stepwise=bool(self.stop),
            fork_of=None if self.fork_of is None else f"{request_id}-{self.fork_of}",
            constraint=None if self.grammar is None else self.grammar.constraint(),
            tenant=self.terms.tenant,
            priority=self.terms.priority,
            start_by=self.terms.start_by,
            deadline=self.terms.deadline,
            cache_salt=self.cache_salt,
            state=self.state,
            state_is_imported=self.state_is_imported,
        )


async def generate_choice(
    engine: AsyncEngine, tokenizer: Tokenizer, metrics: Metrics, request_id: str, choice: Choice
) -> AsyncGenerator[Delta]:
    """Runs one choice on the engine; closing this generator frees the slot.

    Raises:
      QueueFullError, EngineDeadError: see `AsyncEngine.generate`.
      RoostError: time is up, or what the answer has to keep to cannot be kept to.
      ApiError: somebody else aborted the request.
    """
    request = choice.request(request_id)
    detokenizer = Detokenizer(tokenizer, choice.stop, include_stop=choice.include_stop)
    calls = CallReader() if choice.may_call else None
    num_tokens = num_sent = 0
    with metrics.track_request(request) as record:
        async with aclosing(engine.generate(request)) as outputs:
            async for output in outputs:
                if output.finish_reason is FinishReason.ABORT:
                    raise request_aborted()
                if output.error is not None:
                    raise output.error
                record.output(output)
                delta = _advance(choice, detokenizer, output)
                record.tokens(len(delta.token_ids))
                num_tokens += len(delta.token_ids)
                if choice.sends_ids:
                    delta.num_sent = num_tokens
                if calls is not None:
                    delta = _tell_calls(calls, delta, num_sent)
                num_sent = delta.num_sent
                if delta.finish_reason is not None:
                    record.finished(delta.finish_reason)
                    yield replace(delta, times=record.times)
                    return
                yield delta


def _advance(choice: Choice, detokenizer: Detokenizer, output: TokenOutput) -> Delta:
    """Where there are stop strings, tokens are taken one by one, so that none behind such a string counts."""
    finish_reason: FinishReason | None = output.finish_reason
    stop_reason: int | str | None = output.stop_reason
    hides_last = finish_reason is FinishReason.STOP and not choice.include_stop
    visible = output.token_ids[:-1] if hides_last else output.token_ids
    if choice.stop:
        text, num_taken = "", 0
        while num_taken < len(output.token_ids) and detokenizer.stop_string is None:
            text += detokenizer.push(visible[num_taken : num_taken + 1])
            num_taken += 1
    else:
        text, num_taken = detokenizer.push(visible), len(output.token_ids)
    if finish_reason is not None:
        text += detokenizer.finish()
    if detokenizer.stop_string is not None:
        finish_reason, stop_reason = FinishReason.STOP, detokenizer.stop_string
    return Delta(
        index=choice.index,
        text=text,
        token_ids=output.token_ids[:num_taken],
        logprobs=(output.logprobs or ())[:num_taken],
        prompt_logprobs=output.prompt_logprobs,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
        num_cached=output.num_cached if choice.fork_of is None else 0,
        num_sent=detokenizer.num_sent + (hides_last and detokenizer.stop_string is None),
    )


def _tell_calls(reader: CallReader, delta: Delta, num_sent: int) -> Delta:
    """
    Args:
      num_sent: That of the delta before. While the reader holds text back, nothing more is sent.
    """
    is_last = delta.finish_reason is not None
    text, calls = reader.read(delta.text, is_last=is_last)
    called = delta.finish_reason is FinishReason.STOP and reader.is_complete
    num_sent = delta.num_sent if is_last or not reader.is_holding else num_sent
    return replace(delta, text=text, calls=calls, called=called, num_sent=num_sent)


class _End(enum.Enum):
    """Of one choice."""

    END = enum.auto()


class Generation:
    """Choices that run side by side, each in a task; an iterator over their deltas in the order in which they come.

    Deltas of a choice that come while an earlier one waits for the reader are joined with it: a reader that falls
    behind gets fewer, larger ones. Waiting for the next delta may be cancelled and begun again, nothing is lost. Close
    it in any case: that frees the slots of all choices that still run.

    Attributes:
      sent: What has been taken out.
    """

    def __init__(self, choices: Sequence[AsyncGenerator[Delta]], sent: SentAnswer | None = None) -> None:
        self.sent = SentAnswer.of(len(choices)) if sent is None else sent
        self._inbox: Mailbox[DeltaJoiner | Exception | _End] = Mailbox()
        self._num_open = len(choices)
        self._has_reader = False
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in choices]

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Delta:
        """
        Raises:
          Exception: whatever a choice raised.
        """
        delta = await self.next_within(None)
        assert delta is not None
        return delta

    async def next_within(self, patience_s: float | None) -> Delta | None:
        """The next delta, or None if it takes longer than this, which is the same in all calls; None waits for ever.

        Raises:
          StopAsyncIteration: there is no other.
          Exception: whatever a choice raised.
        """
        self._has_reader = True
        if len(self._inbox):
            await asyncio.sleep(0)  # a reader of many choices that has fallen behind must not keep others waiting
        while self._num_open:
            item = await self._inbox.get_within(patience_s)
            if isinstance(item, _End):
                self._num_open -= 1
                continue
            self._has_reader = False
            if isinstance(item, Exception):
                raise item
            return None if item is None else self._taken(item.take())
        raise StopAsyncIteration

    def _taken(self, delta: Delta) -> Delta:
        self.sent.num_tokens[delta.index] = delta.num_sent
        return delta

    def abort(self) -> int:
        """Ends the choices that still run; says how many. Whoever waits for the next delta gets an `ApiError`."""
        alive = [task for task in self._tasks if not task.done() and not task.cancelling()]
        for task in alive:
            task.cancel()
        if alive:
            self._inbox.put(request_aborted())
        return len(alive)

    async def aclose(self) -> None:
        self._inbox.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pump(self, choice: AsyncGenerator[Delta]) -> None:
        unread = DeltaJoiner()
        try:
            async with aclosing(choice):
                async for delta in choice:
                    self._check_client(unread)
                    if not unread:
                        self._inbox.put(unread)
                    unread.add(delta)
        except Exception as error:  # it belongs to whoever waits for the next delta
            self._inbox.put(error)
        else:
            self._inbox.put(_End.END)

    def _check_client(self, unread: DeltaJoiner) -> None:
        """A reader that has returned from here is sending: if it does not come back, its client does not read. A reader
        that is here has only not had its turn on the event loop.

        Raises:
          ApiError: the client has left too much unread.
        """
        if not self._has_reader and unread.num_bytes >= MAX_UNREAD_BYTES:
            raise client_too_slow()


async def collect(generation: Generation) -> list[Delta]:
    """Waits for all choices; gives them whole, by index."""
    choices: defaultdict[int, DeltaJoiner] = defaultdict(DeltaJoiner)
    async for delta in generation:
        choices[delta.index].add(delta)
    return [choices[index].take() for index in sorted(choices)]
