"""A connection as uvicorn has it, but not for ever: whoever stops reading is dropped."""

import asyncio
import logging
import socket
import struct
from functools import partial
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_NOT_AT_ALL: Final = struct.pack("ii", 1, 0)
"""How long the system lingers over what it has not sent; it would else keep that, and the other side would not know."""

_logger = logging.getLogger(__name__)


async def _until_close(app: ASGIApp, cycle: RequestResponseCycle, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves HTTP/1.0, which has no chunks: a body of unknown length ends with the connection."""
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
    """Cut off when nothing of a full buffer has been taken for a while; what is in it would else be kept for as long as
    the other side likes. The request's task then sees a client that has gone away.

    Args:
      stall_s: how long.
    """

    def __init__(self, *args: Any, stall_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stall_s = stall_s
        self._patience: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None

    def pause_writing(self) -> None:
        """Called by the transport when its buffer is full."""
        super().pause_writing()
        self._patience = self.loop.call_later(self._stall_s, self._drop)

    def resume_writing(self) -> None:
        """Called by the transport when most of its buffer has been taken."""
        self._stop_waiting()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the running request, where uvicorn tells only the one that came last."""
        self._stop_waiting()
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
        """Ends the connection once the running request has its response."""
        if self._running is None or self._running.response_complete:
            self.transport.close()
        else:
            self._running.keep_alive = False

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _drop(self) -> None:
        _logger.info("a client was dropped: it has read nothing for %g s", self._stall_s)
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOT_AT_ALL)
        self.transport.abort()
