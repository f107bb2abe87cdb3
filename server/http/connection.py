"""uvicorn's HTTP connection with streams for HTTP/1.0, with limits on senders and slow readers, and counted by port.

uvicorn limits only the size of a head and the number of connections, and closes connections beyond a limit without a
JSON error. It has no timeout for clients that stop reading, and signals a disconnect only to the last pipelined
request. Here, idle connections are closed to make room for new ones.
"""

import asyncio
import logging
import secrets
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final, Protocol

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..errors import kinds
from ..errors.request_errors import ApiError, head_too_large, shutting_down, too_many_connections
from ..observability.metrics import ConnectionCounts
from .error_responses import error_response
from .responses import CYCLE

MAX_PIPELINED: Final = 64
"""Maximum number of requests that wait behind the running one. Thousands of requests fit in one packet, and parsing
them would block the event loop."""

MAX_ADMIN_CONNECTIONS: Final = 64
"""Maximum number of connections of the admin port with a request."""

RESERVED_CONNECTIONS: Final = 64
"""Number of connections of a port beyond its limit, for probes and for clients that get a 503."""

_ALWAYS_SERVED: Final = frozenset({b"/health", b"/health/ready", b"/metrics"})
"""Paths of probes, which are served beyond the limit, since a server that does not respond to them is restarted."""

_LINGER_S: Final = 1.0
"""Seconds for which the connection reads on after an error response. Otherwise a client that is still sending would
lose the response."""

_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: the system resets the connection instead of keeping unsent bytes."""

_logger = logging.getLogger(__name__)


class Droppable(Protocol):
    """A connection."""

    def drop(self) -> None:
        """Closes the connection immediately."""


class PortConnections:
    """Open connections of one port.

    A connection is silent until its first request, busy during each request, and idle afterwards. Probes leave it idle,
    so that they cannot occupy the server. At most `limit` connections are busy, and `RESERVED_CONNECTIONS` more are
    open. Beyond that, a new connection replaces the oldest silent or idle one: otherwise clients that send nothing
    would block all others.

    Attributes:
      limit: Maximum number of busy connections.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._silent: dict[Droppable, None] = {}  # oldest first
        self._idle: dict[Droppable, None] = {}
        self._busy: set[Droppable] = set()
        self._num_dropped = 0
        self._num_refused = 0

    @property
    def _num_open(self) -> int:
        return len(self._silent) + len(self._idle) + len(self._busy)

    @property
    def counts(self) -> ConnectionCounts:
        """Counts for metrics."""
        return ConnectionCounts(self._num_open, len(self._busy), self.limit, self._num_dropped, self._num_refused)

    def open(self, connection: Droppable) -> bool:
        """Adds a new connection; returns False if the port is full and no other connection can be closed for it."""
        has_room = self._num_open < self.limit + RESERVED_CONNECTIONS or self._drop_oldest()
        self._silent[connection] = None  # without room, too: it is closed for the next one
        self._num_refused += not has_room
        return has_room

    def begin(self, connection: Droppable, path: bytes) -> bool:
        """Makes a connection busy, except for the path of a probe; returns False if too many are busy."""
        if connection in self._busy:
            return True
        is_probe = path in _ALWAYS_SERVED
        if not is_probe and len(self._busy) >= self.limit:
            self._num_refused += 1
            return False
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)
        if is_probe:
            self._idle[connection] = None
        else:
            self._busy.add(connection)
        return True

    def end(self, connection: Droppable) -> None:
        """Makes a busy connection idle."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None

    def close(self, connection: Droppable) -> None:
        """Removes a connection, if it is still there."""
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)
        self._busy.discard(connection)

    def _drop_oldest(self) -> bool:
        """Closes the oldest connection without a request. Returns False if there is none.

        Silent connections come first, except the latest, whose requests may be on their way.
        """
        waiting = self._silent if len(self._silent) > RESERVED_CONNECTIONS or not self._idle else self._idle
        oldest = next(iter(waiting), None)
        if oldest is None:
            return False
        self.close(oldest)
        self._num_dropped += 1
        oldest.drop()
        return True


class OpenConnections:
    """Open connections of all ports of a server.

    Attributes:
      public: Connections of the public port.

    Args:
      limit: Maximum number of busy connections of the public port.
      admin_port: Number of the admin port, which has a separate limit; None if there is none.
    """

    def __init__(self, limit: int, admin_port: int | None = None) -> None:
        self.public = PortConnections(limit)
        self._admin = PortConnections(MAX_ADMIN_CONNECTIONS)
        self._admin_port = admin_port

    def of(self, port: int | None) -> PortConnections:
        """Returns the connections of a port; None stands for a Unix socket."""
        return self.public if port is None or port != self._admin_port else self._admin

    def counts_by_port(self) -> Mapping[str, ConnectionCounts]:
        """Counts by port: "public", and "admin" if there is one."""
        ports = {"public": self.public} if self._admin_port is None else {"public": self.public, "admin": self._admin}
        return {name: each.counts for name, each in ports.items()}


@dataclass(frozen=True, slots=True)
class BodyPace:
    """How slowly a body may arrive.

    Attributes:
      idle_s: Maximum seconds between two pieces of data, however small.
      part_s: Maximum seconds for the whole body, or for each part of a longer one, which makes a minimum rate.
      part_bytes: Bytes of a part.
    """

    idle_s: float = 20.0
    part_s: float = 60.0
    part_bytes: int = 4 * 2**20


_SET_PACE: Final = "roost.set_body_pace"
"""Key of an ASGI scope with the function that sets the pace of the request's body."""


def set_body_pace(scope: Scope, pace: BodyPace) -> None:
    """Sets how slowly a request's body may arrive from now on, for a route that clients are meant to feed slowly.

    It has no effect on requests that a server sends to itself.
    """
    if (set_pace := scope.get(_SET_PACE)) is not None:
        set_pace(pace)


class _BodyClock:
    """Measures how long a body keeps the server waiting. Time in which the server reads nothing does not count.

    Attributes:
      pace: How slowly the body may arrive.

    Args:
      now: The event loop's time.
    """

    def __init__(self, pace: BodyPace, now: float) -> None:
        self.pace = pace
        self._num_bytes = 0
        self._last_data = self._part_began = now
        self._paused: float | None = None

    @property
    def deadline(self) -> float:
        """Time at which the body is too late; infinite while the server reads nothing."""
        ends = self._last_data + self.pace.idle_s, self._part_began + self.pace.part_s
        return min(ends) if self._paused is None else inf

    def add(self, num_bytes: int, now: float) -> None:
        """Counts bytes that have arrived."""
        self._last_data = now
        self._num_bytes += num_bytes
        if self._num_bytes >= self.pace.part_bytes:
            self._num_bytes, self._part_began = 0, now

    def pause(self, now: float) -> None:
        """Stops the clock, if it is not stopped."""
        self._paused = now if self._paused is None else self._paused

    def resume(self, now: float) -> None:
        """Starts the clock again, if it was stopped."""
        if self._paused is not None:
            self._last_data += now - self._paused
            self._part_began += now - self._paused
            self._paused = None

    def fault(self, now: float) -> str:
        """Returns what did not arrive in time."""
        if now >= self._last_data + self.pace.idle_s:
            return f"nothing of the body arrived within {self.pace.idle_s:g} s"
        return f"the body, or {self.pace.part_bytes:,} bytes of it, did not arrive within {self.pace.part_s:g} s"


class _ReadFlow(FlowControl):
    """uvicorn's flow control, which also reports when the server stops reading and goes on."""

    def __init__(
        self, transport: asyncio.Transport, on_pause: Callable[[], None], on_resume: Callable[[], None]
    ) -> None:
        super().__init__(transport)
        self._on_pause = on_pause
        self._on_resume = on_resume

    def pause_reading(self) -> None:
        super().pause_reading()
        self._on_pause()

    def resume_reading(self) -> None:
        if self.read_paused:
            self._on_resume()
        super().resume_reading()


class LimitedConnection(HttpToolsProtocol):
    """A connection that responds with an error, if it still can, and closes when its client exceeds a limit.

    It is reset when its client does not read from a full write buffer for `stall_s`. The request's task then sees a
    client disconnect.

    Args:
      stall_s: Write timeout in seconds.
      connections: Open connections of the server.

    Attributes:
      max_head_bytes: Maximum bytes of the URL and all headers together.
      head_s: Seconds from the start of a request or connection to the end of the headers.
      pace: How slowly bodies may arrive, unless their routes set it otherwise.
    """

    max_head_bytes = 64 * 2**10
    head_s = 20.0
    pace = BodyPace()

    def __init__(self, *args: Any, stall_s: float, connections: OpenConnections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stall_s = stall_s
        self._write_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._open_connections = connections
        self._port_connections = connections.of(None)
        self._reads_head = True
        self._unparsed_bytes = self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._body_clock: _BodyClock | None = None
        self._refusal: ApiError | None = None
        self._is_closing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _ReadFlow(transport, self._pause_clock, self._resume_clock)
        self._port_connections = self._open_connections.of(self.server[1] if self.server else None)
        if self._port_connections.open(self):
            self._start_timer()
        else:
            self._refuse(too_many_connections())

    def connection_lost(self, exc: Exception | None) -> None:
        """Signals the disconnect to the running request. uvicorn signals it only to the last one."""
        self._stop_timer()
        self._stop_write_timer()
        self._port_connections.close(self)
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Starts the write timeout. The transport calls this when its buffer is full."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._stall_s, self._reset)

    def resume_writing(self) -> None:
        """Stops the write timeout. The transport calls this when its buffer has drained."""
        self._stop_write_timer()
        super().resume_writing()

    @property
    def is_silent(self) -> bool:
        """Whether the client has sent no request, and may."""
        return self._running is None and not self._is_closing and not self.transport.is_closing()

    def shutdown(self) -> None:
        """Ends the connection with its running request. A client that has sent none gets a 503."""
        if self.is_silent:
            self._refuse(shutting_down())
        else:
            super().shutdown()

    def drop(self) -> None:
        """Closes the connection immediately. An idle client expects no response."""
        self._stop_timer()
        self.transport.abort()  # `close` would wait for clients that have not read all of a response

    def data_received(self, data: bytes) -> None:
        if self._is_closing or self.transport.is_closing():
            return
        if self._reads_head:
            self._unparsed_bytes += len(data)
            if self._timer is None:
                self._start_timer()
        super().data_received(data)
        if self._reads_head and self._unparsed_bytes > self.max_head_bytes and not self._is_closing:
            self._refuse(head_too_large(self.max_head_bytes))  # an endless header, which the parser buffers

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many pipelined requests")
        self._head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:  # of the head, or of the trailers of a body
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            self._refusal = ApiError(kinds.NOT_HTTP, "an HTTP/1.1 request needs exactly one Host header")
            raise httptools.HttpParserError("no Host header, or several")
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            message = "transfer-encoding may only be chunked: send the body uncompressed"
            self._refusal = ApiError(kinds.BODY_ENCODED, message)
            raise httptools.HttpParserError("another transfer encoding than chunked")
        if not self._port_connections.begin(self, self.url.partition(b"?")[0]):
            self._refusal = too_many_connections()
            raise httptools.HttpParserError("too many connections")
        self._reads_head, self._unparsed_bytes = False, 0
        self._body_clock = _BodyClock(self.pace, self.loop.time())
        self._start_timer()
        super().on_headers_complete()
        if self.flow.read_paused:  # by an earlier request, too
            self._pause_clock()

    def on_body(self, body: bytes) -> None:
        if self._body_clock is not None:
            self._body_clock.add(len(body), self.loop.time())
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._reads_head, self._body_clock = True, None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # the last request's
            self._port_connections.end(self)

    def send_400_response(self, msg: str) -> None:
        """Responds to a request that the parser rejects."""
        self._refuse(self._refusal or ApiError(kinds.NOT_HTTP, "this is no HTTP request"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.scope[CYCLE] = cycle  # type: ignore[typeddict-unknown-key]
        cycle.scope[_SET_PACE] = partial(self._set_pace, cycle)  # type: ignore[typeddict-unknown-key]
        is_old = cycle.scope["http_version"] == "1.0"
        whole = partial(_read_rest, partial(_until_close, app, cycle) if is_old else app, cycle)
        super()._start_asgi_task(cycle, whole)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _reset(self) -> None:
        _logger.info("connection reset: the client has read nothing for %g s", self._stall_s)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > self.max_head_bytes:
            self._refusal = head_too_large(self.max_head_bytes)
            raise httptools.HttpParserError("the head is too large")

    def _start_timer(self) -> None:
        """Waits for the rest of a head or a body."""
        self._stop_timer()
        if self._body_clock is None:
            self._timer = self.loop.call_later(self.head_s, self._time_out)
        elif (deadline := self._body_clock.deadline) < inf:
            self._timer = self.loop.call_at(deadline, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_pace(self, cycle: RequestResponseCycle, pace: BodyPace) -> None:
        if self._body_clock is not None and cycle is self.cycle:
            self._body_clock.pace = pace
            self._start_timer()

    def _pause_clock(self) -> None:
        if self._body_clock is not None:
            self._body_clock.pause(self.loop.time())
            self._stop_timer()

    def _resume_clock(self) -> None:
        if self._body_clock is not None and not self._is_closing:
            self._body_clock.resume(self.loop.time())
            self._start_timer()

    def _time_out(self) -> None:
        self._timer = None
        if self._is_closing or self.transport.is_closing():
            return
        if self._body_clock is not None:
            self._time_out_body(self._body_clock)
        elif self._is_responding:
            self._start_timer()  # the server is slow: an earlier request is still running
        elif not self._unparsed_bytes:
            self.transport.close()  # an idle client expects no response
        else:
            message = f"the headers did not arrive within {self.head_s:g} s"
            self._refuse(ApiError(kinds.REQUEST_TOO_SLOW, message))

    def _time_out_body(self, clock: _BodyClock) -> None:
        now = self.loop.time()
        if self.pipeline:  # the server is slow: an earlier request is still running
            self._body_clock = _BodyClock(clock.pace, now)
            self._start_timer()
        elif now < clock.deadline:
            self._start_timer()  # data have arrived since the timer was started
        else:
            self._refuse(ApiError(kinds.REQUEST_TOO_SLOW, clock.fault(now)))

    @property
    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ApiError) -> None:
        """Responds with an error, unless another response has started, and closes the connection."""
        self._stop_timer()
        self._is_closing = True
        if self.pipeline:  # an earlier response is being sent
            self.pipeline.clear()
            if self._running is None or self._running.response_complete:
                self.transport.close()
            else:
                self._running.keep_alive = False
            return
        waits_for_body = self._is_responding and self.cycle.more_body and not self.cycle.response_started
        if waits_for_body or not self._is_responding:
            self.transport.write(_raw(error))
        if self._is_responding:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()


async def _until_close(app: ASGIApp, cycle: RequestResponseCycle, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves HTTP/1.0, which has no chunked encoding: a body of unknown length ends with the connection."""
    is_open_ended = False

    async def send_plain(message: Message) -> None:
        nonlocal is_open_ended
        if message["type"] == "http.response.start":
            is_open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            cycle.chunked_encoding = False if is_open_ended else None
        elif is_open_ended:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    await app(scope, receive, send_plain)


async def _read_rest(app: ASGIApp, cycle: RequestResponseCycle, scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the rest of a body before closing a connection that is not kept alive.

    A client that is still sending would otherwise lose an early response, such as a 413. If it is the response that
    ends the connection, the client has a moment to read it.
    """
    if not cycle.more_body:  # the usual case: the response needs no wrapper
        await app(scope, receive, send)
        return
    expects = any(name == b"expect" for name, _ in scope["headers"])
    linger_s = _LINGER_S if cycle.keep_alive else None

    async def send_and_read(message: Message) -> None:
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and cycle.more_body and not cycle.keep_alive and not expects:
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(linger_s):
                    while (rest := await receive())["type"] == "http.request" and rest["more_body"]:
                        pass
            message = {"type": "http.response.body"}
        await send(message)

    await app(scope, receive, send_and_read)


def _raw(error: ApiError) -> bytes:
    """Returns the bytes of a complete response, with a request id like every response."""
    response = error_response(error)
    own_id = f"req_{secrets.token_hex(16)}".encode()
    headers = [*response.raw_headers, (b"x-request-id", own_id), (b"request-id", own_id), (b"connection", b"close")]
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return STATUS_LINE[error.status_code] + lines + b"\r\n" + bytes(response.body)
