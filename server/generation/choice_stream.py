"""The stream of one choice, from the engine's outputs to deltas that the reader takes."""

from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Final

from ...engine import FinishReason, TokenOutput
from ..errors import client_too_slow, request_aborted
from ..observability.request_record import RequestRecord
from .choice_decoder import ChoiceDecoder
from .delta import Delta, DeltaJoiner
from .mailbox import Mailbox

MAX_UNREAD_BYTES: Final = 256 * 2**10
"""Maximum estimated memory of a choice's deltas that the client does not read: some 10,000 tokens, or 100 with 20
logprobs each. A choice that exceeds it ends, which frees its slot.

A reader that waits for its turn on the event loop is not to blame for what comes meanwhile. One that has taken a delta
is sending it: if it does not come back, its client does not read."""


class ChoiceStream:
    """Sink of one choice's outputs: decodes them as they come, and joins the deltas that were not taken yet.

    Decoding does not wait for the reader, since a stop string has to free the slot at once.

    Attributes:
      is_open: Whether more deltas may come.

    Args:
      decoder: Decodes the outputs.
      record: Record of the engine's request.
      inbox: Mailbox of the request's reader; gets this stream when there is a delta to take, and errors.
      abort: Ends the engine's request.
    """

    def __init__(
        self,
        decoder: ChoiceDecoder,
        record: RequestRecord,
        inbox: "Mailbox[ChoiceStream | Exception]",
        abort: Callable[[], None],
    ) -> None:
        self.is_open = True
        self._decoder = decoder
        self._record = record
        self._inbox = inbox
        self._abort = abort
        self._unread = DeltaJoiner()
        self._context = copy_context()  # of the HTTP request, which the spans of its choices belong to

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
        """Ends the choice, which frees its slot."""
        if self.is_open:
            self._end()
            self._abort()

    def _advance(self, output: TokenOutput) -> None:
        try:
            delta = self._decode(output)
        except Exception as error:  # a bug here must not end the requests that are delivered after this one
            self._fail(error, error)
            self._abort()
            return
        if not self._inbox.has_reader and self._unread.num_bytes >= MAX_UNREAD_BYTES:
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

    def _decode(self, output: TokenOutput) -> Delta:
        self._record.output(output)
        delta = self._decoder.decode(output)
        self._record.tokens(len(delta.token_ids))
        if delta.finish_reason is None:
            return delta
        self._record.finished(delta.finish_reason)
        return replace(delta, times=self._record.times)

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
