"""Client of saved states, for commands that talk to a server."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from ...client import HttpClient, Response

type Exchange = Callable[[Awaitable[Response]], Awaitable[Response]]
"""Waits for a response, and raises an error for the user if there is none or the response is an error."""


async def save(client: HttpClient, exchange: Exchange, request_id: str | None) -> bytes:
    """Returns the file of a request's state, and deletes the state on the server."""
    created = await exchange(client.post("/v1/states", {"request_id": request_id}))
    path = f"/v1/states/{orjson.loads(created.body)['id']}"
    try:
        return (await exchange(client.get(f"{path}/export"))).body
    finally:
        await exchange(client.delete(path))


async def load(client: HttpClient, exchange: Exchange, data: bytes) -> dict[str, Any]:
    """Saves the state in a file; returns the server's description of it."""
    return orjson.loads((await exchange(client.post("/v1/states/import", data))).body)
