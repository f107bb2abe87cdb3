"""What happens to every HTTP request before its route is known. Plain ASGI, outermost first in `app.py`."""

import logging
import re
import secrets
import time
import urllib.parse
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import request_warnings
from ..error_responses import send_error
from ..errors import CLIENT_CLOSED_REQUEST, internal_error
from ..observability.logging import ACCESS_LOGGER, error_reason, request_id
from ..tenancy.tenant import tenant

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MAX_PATH: Final = 200
"""Characters of a path in a log line."""

_QUIET: Final = ("/health", "/health/ready", "/health_generate", "/load", "/metrics")
"""Asked every few seconds, and in the log only at debug level."""

_logger = logging.getLogger(ACCESS_LOGGER)


class RequestScope:
    """Gives each request its id, a line in the log, and an answer even if the code fails."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id.set(_request_id(scope))
        request_warnings.begin()
        error_reason.set([])
        tenant.set("")  # until a key says whose it is: a pipelined request begins in the context of the one before
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            _logger.exception("%s %s failed", scope["method"], _path(scope))
            if exchange.status is not None:
                raise  # half an answer is out: only breaking the connection tells the client
            await send_error(internal_error(), scope, receive, exchange.send)
        finally:
            exchange.log()


class _Exchange:
    """One request and its answer on their way through.

    Attributes:
      status: once the answer has begun.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status: int | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._began = time.perf_counter()
        self._complete = False
        self._client_left = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers["request-id"] = request_id.get()  # OpenAI's and Anthropic's name for it
            headers["openai-version"] = "2020-10-01"
            headers["openai-processing-ms"] = f"{self._elapsed() * 1000:.0f}"
            if warnings := request_warnings.current():
                headers[request_warnings.HEADER] = request_warnings.header_value(warnings)
        else:
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def log(self) -> None:
        level = logging.DEBUG if self._scope["path"] in _QUIET else logging.INFO
        status = CLIENT_CLOSED_REQUEST if self._client_left else self.status
        client_id = Headers(scope=self._scope).get("x-client-request-id", "")
        client_id = client_id if _SANE_ID.fullmatch(client_id) else ""
        reason = (error_reason.get([]) or [""])[-1] if status is not None and status >= 400 else ""
        note = (f" client-id={client_id}" if client_id else "") + (f": {reason}" if reason else "")
        path = _path(self._scope)
        method, seconds = self._scope["method"], round(self._elapsed(), 3)
        fields = {"method": method, "path": path, "status": status, "seconds": seconds, "client_id": client_id}
        fields |= {"error": reason} if reason else {}
        _logger.log(level, "%s %s %s %.3f s%s", method, path, status, seconds, note, extra={"fields": fields})

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began


def _path(scope: Scope) -> str:
    """As it is logged: a path may hold line breaks, and be as long as a head."""
    return urllib.parse.quote(scope["path"][:_MAX_PATH])[:_MAX_PATH]


def _request_id(scope: Scope) -> str:
    """The caller's own if it is harmless, so that a request can be followed through several servers."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
