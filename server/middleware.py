"""What happens to every HTTP request before its route is known. Plain ASGI, outermost first in `app.py`."""

import hmac
import logging
import re
import secrets
import time
import urllib.parse
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .error_answers import error_response
from .errors import CLIENT_CLOSED_REQUEST, ApiError, body_too_large, internal_error, invalid_api_key
from .logging import request_id

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_OPEN: Final = ("/", "/health", "/health/ready", "/metrics")
"""Nobody needs a key for these; the page at the root asks people for it."""

_QUIET: Final = ("/health", "/health/ready", "/health_generate", "/load", "/metrics")
"""Asked every few seconds, and in the log only at debug level."""

_logger = logging.getLogger(__name__)


class RequestScope:
    """Gives each request its id, a line in the log, and an answer even if the code fails."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id.set(_request_id(scope))
        exchange = _Exchange(scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            _logger.exception("%s %s failed", scope["method"], scope["path"])
            if exchange.status is not None:
                raise  # half an answer is out: only breaking the connection tells the client
            await _answer(internal_error(), scope, receive, exchange.send)
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
        else:
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def log(self) -> None:
        level = logging.DEBUG if self._scope["path"] in _QUIET else logging.INFO
        status = CLIENT_CLOSED_REQUEST if self._client_left else self.status
        client_id = Headers(scope=self._scope).get("x-client-request-id", "")
        note = f" client-id={client_id}" if _SANE_ID.fullmatch(client_id) else ""
        path = urllib.parse.quote(self._scope["path"])  # which may hold line breaks
        _logger.log(level, "%s %.200s %s %.3f s%s", self._scope["method"], path, status, self._elapsed(), note)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began


class ApiKey:
    """Lets requests pass that carry the key, and those that need none."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            matches = [hmac.compare_digest(key.encode("latin-1"), self._key) for key in _keys(Headers(scope=scope))]
            if True not in matches:
                await _answer(invalid_api_key(), scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Stops reading bodies that are too large, whether they say so in advance or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            return message

        if announced.isdecimal() and int(announced) > self._max_bytes:
            await _answer(body_too_large(self._max_bytes), scope, receive, send)
        else:
            await self._app(scope, limited, send)


def _keys(headers: Headers) -> list[str]:
    """As OpenAI's clients send it, and as Anthropic's do."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip()]


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(error, scope["path"])(scope, receive, send)


def _request_id(scope: Scope) -> str:
    """The caller's own if it is harmless, so that a request can be followed through several servers."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
