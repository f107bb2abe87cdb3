"""Request ids, the access log and metrics of requests, responses to unhandled exceptions, and draining on shutdown.

Limits on the bodies of requests, and the admission of each request.
"""

import logging
import re
import secrets
import time
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors.request_errors import CLIENT_CLOSED_REQUEST, body_too_large, internal_error, shutting_down
from ..errors.request_warnings import HEADER, header_value, request_warnings
from ..generation.admission import Admission, Admissions, admission
from ..observability.logging import ACCESS_LOGGER, error_reason, request_id
from ..observability.request_metrics import UNKNOWN_HANDLER, HttpMetrics, RequestTokens, request_tokens
from ..tenancy.open_requests import OpenRequests
from ..tenancy.tenant import tenant
from .error_responses import send_error

_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""A request id that is safe in logs and headers."""

_ADDRESS: Final = re.compile(r"[0-9A-Za-z.:%_-]{1,64}")
"""Pattern of a client's address or name. Proxies copy it from clients' headers unchecked."""

_MAX_PATH: Final = 200
"""Maximum characters of a path in a log line."""

_QUIET: Final = ("/health", "/health/ready", "/health_generate", "/load", "/metrics")
"""Paths that are polled every few seconds, so that they are logged at debug level only."""

_UNCOUNTED: Final = ("/health", "/health/ready", "/load", "/metrics", "/version")
"""Paths that are served until the end, and that shutdown does not wait for."""

_logger = logging.getLogger(ACCESS_LOGGER)


class RequestScope:
    """Outermost middleware: gives each request an id, a log line, and a response even if the application raises.

    Args:
      app: Wrapped application.
      metrics: Counts the requests.
      routes: Routes of the application's endpoints.
      model: Name of the model for log lines.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, routes: Sequence[Route], model: str) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id.set(_request_id(scope))
        request_warnings.set([])
        error_reason.set([])
        tokens = RequestTokens()
        request_tokens.set(tokens)
        own: Admission | None = scope.get(ADMISSION)
        tenant.set("" if own is None else own.owner)  # a pipelined request starts in the context of the previous one
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            _logger.exception("%s %s failed", scope["method"], _path(scope))
            if exchange.status is not None:
                raise  # the response has started: only closing the connection signals the error
            await send_error(internal_error(), scope, receive, exchange.send)
        finally:
            exchange.log(tokens.fields(self._model))
            if own is None and exchange.final_status is not None and scope["path"] not in _UNCOUNTED:
                self._metrics.count(self._handler(scope), scope["method"], exchange.final_status)

    def _handler(self, scope: Scope) -> str:
        """Returns the path template of a request's endpoint, even if the request did not reach it."""
        if "route" in scope:
            return str(scope["route"].path)
        found = (route.path for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return next(found, UNKNOWN_HANDLER)


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

    @property
    def final_status(self) -> int | None:
        """Status for log and metrics; None if there was no response."""
        return CLIENT_CLOSED_REQUEST if self._client_disconnected else self.status

    def log(self, tokens: Mapping[str, Any]) -> None:
        """Writes the request's line in the access log.

        Args:
          tokens: Fields about the tokens of the request.
        """
        level = logging.DEBUG if self._scope["path"] in _QUIET else logging.INFO
        status = self.final_status
        client_id = Headers(scope=self._scope).get("x-client-request-id", "")
        client_id = client_id if _SAFE_ID.fullmatch(client_id) else ""
        reason = (error_reason.get([]) or [""])[-1] if status is not None and status >= 400 else ""
        about: dict[str, Any] = {"client": _client(self._scope), **tokens}
        notes = {**about, "client-id": client_id}
        note = "".join(f" {name}={value}" for name, value in notes.items() if value != "")
        note += f": {reason}" if reason else ""
        path = _path(self._scope)
        method, seconds = self._scope["method"], round(self._elapsed(), 3)
        fields = {"method": method, "path": path, "status": status, "seconds": seconds, "client_id": client_id}
        fields |= about | ({"error": reason} if reason else {})
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


def _client(scope: Scope) -> str:
    """Returns the client's address from the connection or from a trusted proxy's header; empty for a Unix socket."""
    host = str((scope.get("client") or ("",))[0])
    return host if _ADDRESS.fullmatch(host) else ""


def _path(scope: Scope) -> str:
    """Returns the path for the log: quoted, since it may contain line breaks, and at most `_MAX_PATH` characters."""
    return urllib.parse.quote(scope["path"][:_MAX_PATH])[:_MAX_PATH]


def _request_id(scope: Scope) -> str:
    """Returns the client's id if it is safe, so that it identifies the request across servers; otherwise a new id."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"


ADMISSION: Final = "roost.admission"
"""Key of an ASGI scope with the admission of work that a server sends to itself. Outside requests cannot set it."""


_FLAG: Final = "--max-body-bytes"


class BodyLimit:
    """Opens the admission of each request, and refuses bodies that exceed the maximum size or the budgets.

    Lines of batches bring their admission, and wait until they fit into the budgets.

    A body's bytes are released after it has been parsed; the bytes of the parsed request after the response has ended.

    Args:
      app: Wrapped application.
      admissions: Admissions of the server.
      exempt_paths: Paths whose routes limit bodies themselves.
    """

    def __init__(self, app: ASGIApp, admissions: Admissions, exempt_paths: Collection[str] = ()) -> None:
        self._app = app
        self._admissions = admissions
        self._max_bytes = admissions.max_body_bytes
        self._exempt_paths = exempt_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt_paths:
            admission.set(self._admissions.unbounded())  # replaces that of the connection's earlier request
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_bytes:
            await send_error(body_too_large(self._max_bytes, _FLAG), scope, receive, send)
            return
        given: Admission | None = scope.get(ADMISSION)
        own, num_bytes = given or self._admissions.open(), 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes, _FLAG)
            own.receive(len(message.get("body", b"")))
            return message

        admission.set(own)
        try:
            await own.begin()
            await self._app(scope, limited, send)
        finally:
            await own.settle()
            if given is None:
                own.release()


def _content_length(scope: Scope) -> int:
    """Returns the body's size according to its header, or 0 without one."""
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0
