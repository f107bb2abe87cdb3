"""Middleware around the routes: paths, ids and log lines of requests, shutdown, limits on bodies, HEAD and OPTIONS."""

import logging
import re
import secrets
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors.request_errors import (
    CLIENT_CLOSED_REQUEST,
    WARNINGS_HEADER,
    ApiError,
    body_too_large,
    header_value,
    internal_error,
    request_warnings,
    shutting_down,
)
from ..generation.admission import BODY_FLAG, Admissions, PreemptibleAdmission, admission
from ..generation.service import OpenRequests
from ..observability.logging import ACCESS_LOGGER, error_reason, request_id
from ..observability.request_metrics import UNKNOWN_HANDLER, HttpMetrics, RequestTokens, request_tokens
from ..tenants import tenant
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

ADMISSION: Final = "roost.admission"
"""Key of an ASGI scope with the admission of work that a server sends to itself. Outside requests cannot set it."""

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
        given_id = Headers(scope=scope).get("x-request-id", "")  # identifies the request across servers, if it is safe
        request_id.set(given_id if _SAFE_ID.fullmatch(given_id) else f"req_{secrets.token_hex(16)}")
        request_warnings.set([])
        error_reason.set([])
        tokens = RequestTokens()
        request_tokens.set(tokens)
        own: PreemptibleAdmission | None = scope.get(ADMISSION)
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
            status = CLIENT_CLOSED_REQUEST if exchange.has_lost_client else exchange.status
            exchange.log(status, self._model, tokens)
            if own is None and status is not None and scope["path"] not in _UNCOUNTED:
                handler = scope["route"].path if "route" in scope else self._handler(scope)
                self._metrics.count(handler, scope["method"], status)

    def _handler(self, scope: Scope) -> str:
        """Returns the path template of the endpoint of a request that did not reach it."""
        found = (route.path for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return next(found, UNKNOWN_HANDLER)


class _Exchange:
    """One request and its response.

    Attributes:
      status: Status code once the response has started.
      has_lost_client: Whether the client disconnected before the end of the response.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status: int | None = None
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.perf_counter()
        self._complete = False
        self.has_lost_client = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self.has_lost_client = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers["request-id"] = request_id.get()  # OpenAI's and Anthropic's names
            headers["openai-version"] = "2020-10-01"
            headers["openai-processing-ms"] = f"{(time.perf_counter() - self._started) * 1000:.0f}"
            if warnings := request_warnings.get():
                headers[WARNINGS_HEADER] = header_value(warnings)
        else:
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def log(self, status: int | None, model: str, tokens: RequestTokens) -> None:
        """Writes the request's line in the access log.

        Args:
          status: Status code; None if there was no response.
          model: Name of the model.
          tokens: Token counts, which are left out for a request that generates nothing.
        """
        scope, seconds = self._scope, round(time.perf_counter() - self._started, 3)
        reason = (error_reason.get([]) or [""])[-1] if status is not None else ""
        has_broken_off = reason != "" and status is not None and status < 400  # a stream
        is_failure = status is None or status >= 500 or has_broken_off
        level = logging.DEBUG if scope["path"] in _QUIET else logging.WARNING if is_failure else logging.INFO
        about: dict[str, Any] = {"client": client_of(scope)}
        if tokens.num_choices:
            about |= {"model": model, "prompt_tokens": tokens.prompt, "cached_tokens": tokens.cached}
            about["completion_tokens"] = tokens.completion
        if tokens.first_token_s is not None:
            about["time_to_first_token"] = round(tokens.first_token_s, 3)
        note = "".join([f" {name}={value}" for name, value in about.items() if value != ""])
        note += f": {reason}" if reason else ""
        method, path = scope["method"], _path(scope)
        fields = {"method": method, "path": path, "status": status, "seconds": seconds}
        fields |= about | ({"error": reason} if reason else {})
        _logger.log(level, "%s %s %s %.3f s%s", method, path, status, seconds, note, extra={"fields": fields})


def client_of(scope: Mapping[str, Any]) -> str:
    """Returns the address of an ASGI scope's client; empty for a Unix socket, or if it is malformed."""
    host = str((scope.get("client") or ("",))[0])
    return host if _ADDRESS.fullmatch(host) else ""


def _path(scope: Scope) -> str:
    """Returns the path for the log: quoted, since it may contain line breaks, and at most `_MAX_PATH` characters."""
    return urllib.parse.quote(scope["path"][:_MAX_PATH])[:_MAX_PATH]


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
        if announced_bytes(Headers(scope=scope)) > self._max_bytes:
            await send_error(body_too_large(self._max_bytes, BODY_FLAG), scope, receive, send)
            return
        given: PreemptibleAdmission | None = scope.get(ADMISSION)
        own = given or self._admissions.open()
        admission.set(own)
        try:
            if given is not None:
                await given.begin()
            await self._app(scope, own.charged(receive, self._max_bytes), send)
        finally:
            if given is None:
                own.release()
            else:
                await given.settle()


def announced_bytes(headers: Headers) -> int:
    """Returns the size that a request announces for its body, so that a large one can be refused before it is sent."""
    announced = headers.get("content-length", "0")
    return int(announced) if announced.isdecimal() else 0


class HeadAndOptions:
    """Middleware that responds to HEAD like GET without the body, and to OPTIONS with the methods of a path.

    Load balancers probe with them.

    Args:
      app: Wrapped application.
      routes: Routes of the application's endpoints.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method == "OPTIONS" and (methods := self._methods(scope)):
            headers = {"allow": ", ".join(sorted({*methods, "OPTIONS"}))}
            await Response(status_code=204, headers=headers)(scope, receive, send)
        elif method == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, partial(_send_head, send))
        else:
            await self._app(scope, receive, send)

    def _methods(self, scope: Scope) -> set[str]:
        is_any = scope["path"] == "*"
        routes = [route for route in self._routes if is_any or route.matches(scope)[0] is not Match.NONE]
        methods = {method for route in routes for method in route.methods or ()}
        return methods | {"HEAD"} if "GET" in methods else methods


async def _send_head(send: Send, message: Message) -> None:
    """Sends a response's head without the body. The application then sees a client that disconnected."""
    if message["type"] == "http.response.start":
        await send(message)
        await send({"type": "http.response.body", "body": b""})


class Guard(ABC):
    """Middleware that refuses some requests before any of their body is read.

    Args:
      app: Wrapped application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._check(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await send_error(error, scope, receive, send)

    @abstractmethod
    def _check(self, scope: Scope) -> ApiError | None:
        """Returns the error of a request that is refused; None lets it pass."""


class RootPath:
    """Removes a proxy's prefix from paths, and adds it to links to the server.

    The wrapped application, including access control, sees paths without the prefix. This is the outermost middleware.

    Args:
      app: Wrapped application.
      prefix: Prefix, such as "/llm".
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, prefix = scope["path"], self._prefix
            scope["root_path"] = prefix
            if path == prefix or path.startswith(f"{prefix}/"):
                scope["path"] = path.removeprefix(prefix) or "/"
                scope["raw_path"] = scope.get("raw_path", b"").removeprefix(prefix.encode()) or b"/"
        await self._app(scope, receive, send)
