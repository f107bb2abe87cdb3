"""Work ends when nobody waits for it any more: uvicorn by itself lets a handler run on after its client has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive


async def until_disconnect[T](receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` as a task for as long as the client stays connected. The request's body must have been read.

    Raises:
      ClientDisconnect: the client went away first; `work` was cancelled and has ended.
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
