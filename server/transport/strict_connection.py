"""Connections whose clients send slowly, greedily, or no HTTP at all; who does not read is for `connection.py`."""

import asyncio
import secrets
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..error_responses import error_response
from ..errors import ApiError, head_too_large, host_missing, not_http, too_many_connections, too_slow
from .connection import Connection

MAX_HEAD_BYTES: Final = 64 * 2**10
"""Of the URL and all headers together."""

MAX_CONNECTIONS: Final = 4096
HEAD_S: Final = 20.0
"""From a request's first byte, or the connection's, to the end of its headers."""

BODY_S: Final = 60.0
"""From there to the end of its body."""

MAX_PIPELINED: Final = 64
"""Requests of a connection that may wait behind the one that is being answered. Thousands of them, which come in one
packet, would keep the event loop from others."""

_LINGER_S: Final = 1.0
"""To read on after a refusal, as a client that is still sending would else lose it."""


class StrictConnection(Connection):
    """Requests of one client, one after the other. Who exceeds a limit gets an answer if one can still be given, and
    is cut off.

    Attributes:
      max_head_bytes, max_connections, head_s, body_s: see the constants.
    """

    max_head_bytes = MAX_HEAD_BYTES
    max_connections = MAX_CONNECTIONS
    head_s = HEAD_S
    body_s = BODY_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reads_head = True
        self._unparsed_bytes = 0
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: ApiError | None = None
        self._is_over = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(too_many_connections())
        else:
            self._wait_at_most(self.head_s, "a request")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over or self.transport.is_closing():
            return
        if self._reads_head:
            self._unparsed_bytes += len(data)
            if self._timer is None:
                self._wait_at_most(self.head_s, "the headers")
        super().data_received(data)
        if self._reads_head and self._unparsed_bytes > self.max_head_bytes and not self._is_over:
            self._refuse(head_too_large(self.max_head_bytes))  # one header without an end, which the parser keeps

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            self._refusal = host_missing()
            raise httptools.HttpParserError("no host, or several")
        self._reads_head, self._unparsed_bytes = False, 0
        self._wait_at_most(self.body_s, "the body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._reads_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says to what it cannot read."""
        self._refuse(self._refusal or not_http())

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > self.max_head_bytes:
            self._refusal = head_too_large(self.max_head_bytes)
            raise httptools.HttpParserError("the head is too large")

    def _wait_at_most(self, seconds: float, what: str) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._lose_patience, seconds, what)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose_patience(self, seconds: float, what: str) -> None:
        self._timer = None
        if self._is_over or self.transport.is_closing():
            return
        if self.pipeline or (self._reads_head and self._is_answering):
            self._wait_at_most(seconds, what)  # it is we who are slow: an earlier request is not answered yet
        elif self._reads_head and not self._unparsed_bytes:
            self.transport.close()  # who has said nothing expects no answer
        else:
            self._refuse(too_slow(what, seconds))

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Answers, unless it would be in the middle of another answer, and closes the connection."""
        self._stop_timer()
        self._is_over = True
        if self.pipeline:  # an earlier request is being answered: there is no place for another answer
            self.pipeline.clear()
            self.close_after_response()
            return
        waits_for_body = self._is_answering and self.cycle.more_body and not self.cycle.response_started
        if waits_for_body or not self._is_answering:
            self.transport.write(_raw(error))
        if self._is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()


def _raw(error: ApiError) -> bytes:
    """A whole answer, with an id as every answer has."""
    response = error_response(error, "")
    own_id = f"req_{secrets.token_hex(16)}".encode()
    headers = [*response.raw_headers, (b"x-request-id", own_id), (b"request-id", own_id), (b"connection", b"close")]
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return STATUS_LINE[error.status_code] + lines + b"\r\n" + bytes(response.body)
