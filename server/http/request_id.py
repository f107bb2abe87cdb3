"""Request ids, the access log, responses for requests that raise, and draining of requests on shutdown."""

import logging
import re
import secrets
import time
import urllib.parse
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors.request_errors import CLIENT_CLOSED_REQUEST, internal_error, shutting_down
from ..errors.request_warnings import HEADER, header_value, request_warnings
from ..observability.logging import ACCESS_LOGGER, error_reason, request_id
from ..tenancy.batch_line import SCOPE_KEY, is_batch_line
from ..tenancy.open_requests import OpenRequests
from ..tenancy.tenant import tenant
from .error_responses import send_error

_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""A request id that is safe in logs and headers."""

_MAX_PATH: Final = 200
"""Maximum characters of a path in a log line."""

_QUIET: Final = ("/health", "/health/ready", "/health_generate", "/load", "/metrics")
"""Paths that are polled every few seconds, so that they are logged at debug level only."""

_UNCOUNTED: Final = ("/health", "/health/ready", "/load", "/metrics", "/version")
"""Paths that are served until the end, and that shutdown does not wait for."""

_logger = logging.getLogger(ACCESS_LOGGER)


class RequestScope:
    """Gives each request an id, a log line, and a response even if the application raises. The outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id.set(_request_id(scope))
        request_warnings.set([])
        error_reason.set([])
        batch_tenant: str | None = scope.get(SCOPE_KEY)
        is_batch_line.set(batch_tenant is not None)
        tenant.set(batch_tenant or "")  # a pipelined request starts in the context of the previous one
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            _logger.exception("%s %s failed", scope["method"], _path(scope))
            if exchange.status is not None:
                raise  # the response has started: only closing the connection signals the error
            await send_error(internal_error(), scope, receive, exchange.send)
        finally:
            exchange.log()


class _Exchange:
    """One request and its response.

    Attributes:
      status: Status code once the response has started.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status: int | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._complete = False
        self._client_disconnected = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self._client_disconnected = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers["request-id"] = request_id.get()  # OpenAI's and Anthropic's names
            headers["openai-version"] = "2020-10-01"
            headers["openai-processing-ms"] = f"{self._elapsed() * 1000:.0f}"
            if warnings := request_warnings.get():
                headers[HEADER] = header_value(warnings)
        else:
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def log(self) -> None:
        """Writes the request's line in the access log."""
        level = logging.DEBUG if self._scope["path"] in _QUIET else logging.INFO
        status = CLIENT_CLOSED_REQUEST if self._client_disconnected else self.status
        client_id = Headers(scope=self._scope).get("x-client-request-id", "")
        client_id = client_id if _SAFE_ID.fullmatch(client_id) else ""
        reason = (error_reason.get([]) or [""])[-1] if status is not None and status >= 400 else ""
        note = (f" client-id={client_id}" if client_id else "") + (f": {reason}" if reason else "")
        path = _path(self._scope)
        method, seconds = self._scope["method"], round(self._elapsed(), 3)
        fields = {"method": method, "path": path, "status": status, "seconds": seconds, "client_id": client_id}
        fields |= {"error": reason} if reason else {}
        _logger.log(level, "%s %s %s %.3f s%s", method, path, status, seconds, note, extra={"fields": fields})

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started


class Drain:
    """Counts open requests, and refuses new ones once shutdown has closed the server.

    Args:
      app: Wrapped application.
      open_requests: Counter that lifecycle and middleware share.
    """

    def __init__(self, app: ASGIApp, open_requests: OpenRequests) -> None:
        self._app = app
        self._open_requests = open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
        elif self._open_requests.is_accepting:
            self._open_requests.count += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._open_requests.count -= 1
        else:
            await send_error(shutting_down(), scope, receive, send)


def _path(scope: Scope) -> str:
    """Returns the path as it is logged: quoted, since it may contain line breaks, and cut to `_MAX_PATH` characters."""
    return urllib.parse.quote(scope["path"][:_MAX_PATH])[:_MAX_PATH]


def _request_id(scope: Scope) -> str:
    """Returns the client's id if it is safe, so that it identifies the request across servers, or else a new id."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
