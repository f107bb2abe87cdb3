"""The stream of one choice: decodes the engine's outputs, and joins the deltas that its reader has not taken yet."""

from array import array
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from io import StringIO
from typing import Final, Protocol, runtime_checkable

from ...engine import FinishReason, TokenLogprobs, TokenOutput
from ..constraints.tools import CallJoiner, CallReader, join_calls
from ..errors.request_errors import client_too_slow, request_aborted
from ..observability.request_metrics import RequestRecord
from ..text.detokenizer import Detokenizer
from ..text.tokenizer import Tokenizer
from .delta import Delta
from .spec import Choice

MAX_UNREAD_BYTES: Final = 256 * 2**10
"""Maximum estimated memory of a choice's deltas that the client does not read: some 10,000 tokens, or 100 with 20
logprobs each. A choice that exceeds it ends, which frees its slot.

Deltas that arrive while the reader waits for its turn on the event loop do not count. A reader that has taken a delta
is sending it: if it does not return, its client does not read.
"""

_TOKEN_BYTES: Final = 8
_LOGPROBS_BYTES: Final = 128
_LOGPROB_BYTES: Final = 128
"""Estimated memory of a token id, of an entry of logprobs, and of each alternative in an entry."""


@runtime_checkable
class Reader(Protocol):
    """Mailbox of a request's reader.

    Attributes:
      has_reader: Whether the reader waits for an item, or was cancelled while it did.
    """

    has_reader: bool

    def put(self, item: "ChoiceStream | Exception") -> None:
        """Adds a stream that has a delta to take, or an error."""

    def offer(self, index: int, text: str, num_tokens: int, num_sent: int) -> bool:
        """Offers a delta that has only text to a waiting reader, which takes it immediately; returns whether it did.

        Args:
          index: Index of the choice.
          text: New text, which may be empty.
          num_tokens: Number of new tokens.
          num_sent: See `Delta.num_sent`.
        """


class ChoiceStream:
    """Sink of one choice's outputs: decodes them on arrival, and joins the deltas that were not taken yet.

    Decoding does not wait for the reader, since a stop string must free the slot immediately.

    Attributes:
      is_open: Whether more deltas may come.

    Args:
      choice: Choice to decode.
      tokenizer: Tokenizer of the model.
      record: Record of the engine's request.
      inbox: Mailbox of the request's reader; receives errors, and this stream when it has a delta to take.
      abort: Ends the engine's request.
      max_unread_bytes: Maximum estimated memory of deltas that a slow reader leaves unread.
    """

    def __init__(
        self,
        choice: Choice,
        tokenizer: Tokenizer,
        record: RequestRecord,
        inbox: Reader,
        abort: Callable[[], None],
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> None:
        self.is_open = True
        self._index = choice.index
        self._decoder = _ChoiceDecoder(choice, tokenizer)
        self._record = record
        self._inbox = inbox
        self._abort = abort
        self._max_unread_bytes = max_unread_bytes
        self._unread = DeltaJoiner()
        self._context = copy_context()  # context of the HTTP request, which is the parent of its choices' spans

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
        return self._unread.take()

    def close(self) -> None:
        """Ends the choice, which must be open, and frees its slot."""
        self._end()
        self._abort()

    def _advance(self, output: TokenOutput) -> None:
        try:
            delta = self._decode(output)
            if delta is None:
                return
        except Exception as error:  # a bug here must not end the requests that are delivered after this one
            self._fail(error, error)
            self._abort()
            return
        if not self._inbox.has_reader and self._unread.num_bytes >= self._max_unread_bytes:
            self._fail(client_too_slow())
            self._abort()
            return
        if not self._unread:
            self._inbox.put(self)
        self._unread.add(delta)
        if delta.finish_reason is not None:
            self._end()
        if output.finish_reason is None and not self.is_open:  # a stop string is complete
            self._abort()

    def _decode(self, output: TokenOutput) -> Delta | None:
        """Returns the delta of an output; None if the reader has taken it already."""
        received_at = self._record.clock()
        text = self._decoder.decode_text(output)
        if text is not None:  # the usual case, for which no delta is built
            self._record.add(output, len(output.token_ids), received_at)
            if self._inbox.offer(self._index, text, len(output.token_ids), self._decoder.num_sent):
                return None
            return Delta(self._index, text, token_ids=output.token_ids, num_sent=self._decoder.num_sent)
        delta = self._decoder.decode(output)
        delta.times = self._record.add(output, len(delta.token_ids), received_at, delta.finish_reason)
        if _is_text(delta) and self._inbox.offer(self._index, delta.text, len(delta.token_ids), delta.num_sent):
            return None
        return delta

    def _fail(self, error: Exception, cause: Exception | None = None) -> None:
        """Ends the choice with an error for the reader.

        Args:
          cause: Error that ended the request; None if the request was aborted.
        """
        self._end(cause)
        self._inbox.put(error)

    def _end(self, cause: Exception | None = None) -> None:
        self.is_open = False
        self._context.run(self._record.end, cause)


class _ChoiceDecoder:
    """Decodes the outputs of a choice, in order.

    Attributes:
      num_sent: See `Delta.num_sent`.
    """

    def __init__(self, choice: Choice, tokenizer: Tokenizer) -> None:
        self.num_sent = 0
        self._has_text_only = not (choice.stop or choice.may_call or choice.sends_ids)
        self._choice = choice
        self._detokenizer = Detokenizer(tokenizer, choice.stop, include_stop=choice.include_stop)
        self._calls = CallReader() if choice.may_call else None
        self._num_tokens = 0
        if choice.earlier_ids:  # another replica has sent their text
            self.decode(TokenOutput(choice.earlier_ids))

    def decode_text(self, output: TokenOutput) -> str | None:
        """Returns the text of an output whose delta has only text and the ids of its tokens.

        Returns None, and decodes nothing, for all other outputs, and for choices with stop strings or tool calls.
        """
        if not self._has_text_only or output.finish_reason is not None or output.num_cached:
            return None
        if output.logprobs is not None or output.prompt_logprobs is not None:
            return None
        text = self._detokenizer.push(output.token_ids)
        self.num_sent = self._detokenizer.num_sent
        return text

    def decode(self, output: TokenOutput) -> Delta:
        """Returns the delta of an output. It also has a finish reason if a stop string is complete."""
        delta = self._detokenize(output)
        self._num_tokens += len(delta.token_ids)
        if self._choice.sends_ids:
            delta.num_sent = self._num_tokens
        if self._calls is not None:
            delta = self._parse_calls(self._calls, delta)
        self.num_sent = delta.num_sent
        return delta

    def _detokenize(self, output: TokenOutput) -> Delta:
        choice, detokenizer = self._choice, self._detokenizer
        finish_reason: FinishReason | None = output.finish_reason
        stop_reason: int | str | None = output.stop_reason
        hides_last = finish_reason is FinishReason.STOP and not choice.include_stop
        visible, num_taken = output.token_ids[:-1] if hides_last else output.token_ids, len(output.token_ids)
        if choice.stop:
            text, num_taken = self._text_until_stop(visible, num_taken)
        else:
            text = detokenizer.push(visible)
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
            num_cached=0 if choice.fork_of is not None or choice.earlier_ids else output.num_cached,
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
        num_sent = delta.num_sent if is_last or not calls.is_holding else self.num_sent
        return replace(delta, text=text, calls=pieces, called=called, num_sent=num_sent)


class DeltaJoiner:
    """Joins consecutive deltas of one choice, without keeping all of them."""

    def __init__(self) -> None:
        self._first: Delta | None = None
        self._joined: _JoinedDeltas | None = None

    def __bool__(self) -> bool:
        """Whether a delta was added since the last `take`."""
        return self._first is not None

    @property
    def num_bytes(self) -> int:
        """Estimated memory of the deltas added since the last `take`."""
        if self._joined is not None:
            return self._joined.num_bytes
        return 0 if self._first is None else _num_bytes(self._first)

    def add(self, delta: Delta) -> None:
        """Adds the next delta. Nothing is copied before the second one, since most deltas are taken alone."""
        if self._first is None:
            self._first = delta
            return
        if self._joined is None:
            self._joined = _JoinedDeltas(self._first)
        self._joined.add(delta)

    def take(self) -> Delta:
        """Returns the deltas added since the last `take` as one. At least one delta must have been added."""
        first, joined = self._first, self._joined
        assert first is not None
        self._first = self._joined = None
        if joined is not None:
            return joined.whole()
        return replace(first, calls=join_calls(first.calls)) if first.calls else first


class _JoinedDeltas:
    """Joined deltas, which take no more memory than their content."""

    def __init__(self, first: Delta) -> None:
        self.num_bytes = 0
        self._first = first
        self._text = StringIO()
        self._calls = CallJoiner()
        self._token_ids = array("i")
        self._logprobs: list[TokenLogprobs] = []
        self._num_cached = 0
        self.add(first)

    def add(self, delta: Delta) -> None:
        self._last = delta
        self._text.write(delta.text)
        for piece in delta.calls:
            self._calls.add(piece)
        self._token_ids.extend(delta.token_ids)
        self._logprobs.extend(delta.logprobs)
        self._num_cached += delta.num_cached
        self.num_bytes += _num_bytes(delta)

    def whole(self) -> Delta:
        """Returns all deltas as one."""
        first, last = self._first, self._last
        return Delta(
            index=first.index,
            text=self._text.getvalue(),
            calls=self._calls.joined(),
            called=last.called,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=first.prompt_logprobs,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            num_cached=self._num_cached,
            times=last.times,
            num_sent=last.num_sent,
            prediction=last.prediction,
        )


def _is_text(delta: Delta) -> bool:
    """Returns whether a delta has only text, which may be empty, and the ids of its tokens."""
    has_more = delta.calls or delta.logprobs or delta.prompt_logprobs or delta.num_cached
    return delta.finish_reason is None and not has_more


def _num_bytes(delta: Delta) -> int:
    texts = [delta.text, *(piece.arguments for piece in delta.calls)]
    num_bytes = sum(len(text) if text.isascii() else 4 * len(text) for text in texts)
    num_bytes += _TOKEN_BYTES * len(delta.token_ids)
    for entries in (delta.logprobs, delta.prompt_logprobs):
        if entries:
            num_bytes += len(entries) * _entry_bytes(entries)
    return num_bytes


def _entry_bytes(entries: Sequence[TokenLogprobs | None]) -> int:
    """Returns the memory of each entry: all have equally many alternatives, but a prompt's first one is None."""
    entry = entries[-1]
    return 0 if entry is None else _LOGPROBS_BYTES + _LOGPROB_BYTES * (len(entry.top) + len(entry.named))
