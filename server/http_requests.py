"""Helpers for HTTP requests that routes and middleware share: client disconnects and content encodings."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from .errors import encoded_body


async def until_disconnect[T](receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine until it returns or the client disconnects; uvicorn by itself would let it run on.

    Args:
      receive: ASGI channel of the request, whose body must have been read.
      work: Coroutine that runs as a task of its own.

    Returns:
      Result of the coroutine.

    Raises:
      ClientDisconnect: The client disconnected first; the task was cancelled and has ended.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def refuse_encoding(headers: Headers) -> None:
    """Checks that a request's body is not compressed.

    Raises:
      ApiError: The `content-encoding` header names an encoding.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise encoded_body(encoding)
