"""Client of saved states, for commands that talk to a server."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from ...client import HttpClient, Response

type Exchange = Callable[[Awaitable[Response]], Awaitable[Response]]
"""Waits for a response, and raises an error for the user if there is none or the response is an error."""


async def save(client: HttpClient, exchange: Exchange, request_id: str | None) -> bytes:
    """Returns the file of a request's state, and deletes the state on the server."""
    path = f"/v1/states/{(await _json(exchange, client, '/v1/states', {'request_id': request_id}))['id']}"
    try:
        return (await exchange(client.get(f"{path}/export"))).body
    finally:
        await exchange(client.delete(path))


async def load(client: HttpClient, exchange: Exchange, data: bytes) -> dict[str, Any]:
    """Saves the state in a file; returns the server's description of it."""
    pieces: list[bytes] = []
    await exchange(client.post_file("/v1/states/import", data, lambda piece, _: pieces.append(piece)))
    state: dict[str, Any] = orjson.loads(b"".join(pieces))
    return state


async def _json(exchange: Exchange, client: HttpClient, path: str, body: Any) -> Any:
    pieces: list[bytes] = []
    await exchange(client.post(path, body, lambda piece, _: pieces.append(piece)))
    return orjson.loads(b"".join(pieces))
