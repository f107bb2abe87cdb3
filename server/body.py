"""Bodies on their way in: how large they may be, and how they are parsed."""

import asyncio
import codecs
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .error_answers import send_error
from .errors import ApiError, bad_value, body_too_large, encoded_body, too_many_bytes

MAX_BODY_BYTES: Final = 4 * 2**20
"""Room for a prompt of a million tokens of text, or of half a million ids."""

_BODIES_AT_A_TIME: Final = 32
"""So many of the largest bodies may be under way: parsed, each takes up to thirty times its size."""

_LONG: Final = 64 * 2**10
"""Bytes that take a millisecond or so: from here on bodies wait for each other on a thread, and not the event loop
for all of them."""

_parser: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="json")


class BodyLimit:
    """Stops reading bodies that are too large, whether they say so in advance or not, and more of them than there is
    room for.

    Args:
      app: what is behind it.
      max_bytes: of one body.
      files: paths whose routes have a bound of their own for bodies; see `StateFiles.receive`.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, files: Collection[str] = ()) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._room = _BODIES_AT_A_TIME * max_bytes
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._files:
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._max_bytes:
            await send_error(body_too_large(self._max_bytes), scope, receive, send)
            return
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            length = len(message.get("body", b""))
            num_bytes += length
            self._room -= length
            if num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            if self._room < 0:
                raise too_many_bytes()
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._room += num_bytes


def _announced(scope: Scope) -> int:
    """The body's size according to its header, where it has one."""
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0


class JsonRoute(APIRoute):
    """Reads JSON more strictly than Python does: no NaN, no half characters, no nesting beyond 200."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            refuse_encoding(request.headers)
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        if len(body) < _LONG:
            return parse_json(body)
        return await asyncio.get_running_loop().run_in_executor(_parser, parse_json, body)


def refuse_encoding(headers: Headers) -> None:
    """
    Raises:
      ApiError: the body is compressed.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise encoded_body(encoding)


def parse_json(body: bytes) -> Any:
    """Parses JSON in UTF-8, with or without a byte order mark.

    Raises:
      ApiError: this is no JSON, or too deeply nested.
    """
    try:
        return from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _not_json(str(error)) from None


def _not_json(reason: str) -> ApiError:
    return bad_value(None, f"the body is not valid JSON: {reason}")
