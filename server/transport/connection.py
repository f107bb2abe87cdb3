"""uvicorn's HTTP connection with a write timeout, and with streams for HTTP/1.0.

uvicorn has no timeout for clients that stop reading, and signals a disconnect only to the last pipelined request.
"""

import asyncio
import logging
import socket
import struct
from functools import partial
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of 0 s: the system resets the connection instead of keeping unsent bytes."""

_logger = logging.getLogger(__name__)


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


class Connection(HttpToolsProtocol):
    """A connection that is reset when its client reads nothing of a full write buffer for `stall_s`.

    The request's task then sees a client disconnect.

    Args:
      stall_s: Write timeout in seconds.
    """

    def __init__(self, *args: Any, stall_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stall_s = stall_s
        self._write_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def pause_writing(self) -> None:
        """Called by the transport when its buffer is full."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._stall_s, self._reset)

    def resume_writing(self) -> None:
        """Called by the transport when most of its buffer has been taken."""
        self._stop_write_timer()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Signals the disconnect to the running request; uvicorn signals it to the last one only."""
        self._stop_write_timer()
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        is_old = cycle.scope["http_version"] == "1.0"
        super()._start_asgi_task(cycle, partial(_until_close, app, cycle) if is_old else app)

    def close_after_response(self) -> None:
        """Closes the connection once the running request has its response."""
        if self._running is None or self._running.response_complete:
            self.transport.close()
        else:
            self._running.keep_alive = False

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _reset(self) -> None:
        _logger.info("connection reset: the client has read nothing for %g s", self._stall_s)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()
