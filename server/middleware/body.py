"""Bodies on their way in: how large they may be, how they are parsed, and what they hold until the answer ends."""

import codecs
import gc
import re
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..error_responses import send_error
from ..errors import ApiError, bad_value, body_too_large, from_exception
from ..http_requests import refuse_encoding
from ..tenancy.memory import ByteBudget, RequestMemory, request_memory, size_of
from ..tenancy.workers import Workers

MAX_BODY_BYTES: Final = 4 * 2**20
"""Room for a prompt of a million tokens of text, or of half a million ids."""

_MAX_RAW_BODIES: Final = 32
"""Number of bodies of the largest size that may be on their way in together."""

MAX_KEPT_BYTES: Final = 2**30
"""Bytes that all requests may hold together until their answers end: parsed bodies, prompts, and what answers repeat of
them. A parsed body may hold thirty times its size; most hold about once."""

_LARGEST_REQUESTS: Final = 4
"""Number of requests that may hold as much as the largest body can become."""

_GROWTH: Final = 64
"""The most that a body can become, times its size: its values and its prompt's token ids."""

MAX_CONTAINERS: Final = 2**17
"""Arrays and objects of a body. As many messages as there may be, each with parts, have fewer."""

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)

_LONG: Final = 16 * 2**10
"""Bytes that take a millisecond or so to parse: from here on a worker thread does it."""


class BodyLimit:
    """Stops reading bodies that are too large, whether they say so in advance or not, and more of them than there is
    room for. Room for a body is given back when it has been parsed; room for what was made of it when the answer ends.

    Args:
      app: what is behind it.
      max_bytes: of one body.
      files: paths whose routes have a bound of their own for bodies; see `StateFiles.receive`.
      tenants: number of tenants that share the room.
      max_kept_bytes: of all requests together; more where one body could become more.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_BODY_BYTES,
        files: Collection[str] = (),
        tenants: int = 1,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._raw = ByteBudget(_MAX_RAW_BODIES * max_bytes, tenants)
        self._kept = ByteBudget(max(max_kept_bytes, _LARGEST_REQUESTS * _GROWTH * max_bytes), tenants)
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._files:
            request_memory.set(None)  # a pipelined request begins in the context of the one before
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._max_bytes:
            await send_error(body_too_large(self._max_bytes), scope, receive, send)
            return
        memory, num_bytes = RequestMemory(self._raw, self._kept), 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            memory.receive(len(message.get("body", b"")))
            return message

        request_memory.set(memory)
        try:
            await self._app(scope, limited, send)
        finally:
            memory.release()


def _announced(scope: Scope) -> int:
    """The body's size according to its header, where it has one."""
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0


class JsonRoute(APIRoute):
    """Reads JSON more strictly than Python does: no NaN, no half characters, no nesting beyond 200. A body becomes its
    model before FastAPI sees it, so that a worker thread can do it and nothing but the model stays in memory."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model: Any = None if self.body_field is None else self.body_field.field_info.annotation

        async def handle_json(request: Request) -> Response:
            refuse_encoding(request.headers)
            return await handle(_JsonRequest(request, model))

        return handle_json


class _JsonRequest(Request):
    """
    Args:
      model: of the body; None where there is none.
    """

    def __init__(self, request: Request, model: type[BaseModel] | None) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model
        self._raw = bytearray()

    async def body(self) -> bytes:
        """The first byte: FastAPI holds what it gets until the answer ends, and only looks whether there is any."""
        async for chunk in self.stream():
            self._raw += chunk
        return bytes(self._raw[:1])

    async def json(self) -> Any:
        raw, self._raw = self._raw, bytearray()
        memory = request_memory.get()
        if len(raw) < _LONG:
            parsed, num_bytes = _parse(raw, self._model)
        else:
            workers: Workers = self.app.state.service.workers
            parsed, num_bytes = await workers.run(lambda: _parse(raw, self._model))
        if memory is not None:
            memory.drop_raw()
            memory.keep(num_bytes)
        return parsed


def _parse(raw: bytearray, model: type[BaseModel] | None) -> tuple[Any, int]:
    """Returns a body as its model, and the bytes that it takes.

    Raises:
      ApiError: this is no JSON, is too deeply nested, or does not fit the model.
    """
    _check_containers(raw)
    was_enabled = gc.isenabled()
    gc.disable()  # a million new objects would set it off again and again, and everybody waits while it runs
    try:
        parsed = parse_json(raw)
        checked = parsed if model is None else _checked(parsed, model)
        return checked, size_of(checked)
    finally:
        if was_enabled:
            gc.enable()


def _check_containers(raw: bytes | bytearray) -> None:
    """Millions of empty arrays are small as text, and keep the interpreter from others for seconds.

    Raises:
      ApiError: there are too many arrays and objects.
    """
    if _num_containers(raw) > MAX_CONTAINERS and _num_containers(_STRING.sub(b"", raw)) > MAX_CONTAINERS:
        raise bad_value(None, f"the body must have at most {MAX_CONTAINERS} arrays and objects")


def _num_containers(raw: bytes | bytearray) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _checked(parsed: Any, model: type[BaseModel]) -> BaseModel:
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        details = [{**detail, "loc": ("body", *detail["loc"])} for detail in error.errors(include_url=False)]
        raise from_exception(RequestValidationError(details, body=parsed)) from None


def parse_json(body: bytes | bytearray) -> Any:
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
