"""The attacker's HTTP client, and actions that attacks of attacks.py and store_attacks.py are made of."""

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

PAUSE_S: Final = 0.05
"""Seconds between two requests of one connection, so that a refused attacker does not spin."""

TRICKLE_S: Final = 10.0

HOLD_S: Final = 15.0
"""Seconds after which an attack starts even if some of its connections have not sent a request."""

VOCAB_SIZE: Final = 3072
"""Vocabulary size of the demo model."""

MAX_BODY: Final = 4 * 2**20
"""Default of `--max-body-bytes`."""

COMPLETIONS, CHAT, RESPONSES, GENERATE = "/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate"
CONVERSATIONS = "/v1/conversations"
STATES, IMPORT = "/v1/states", "/v1/states/import"

type Body = Mapping[str, Any] | bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and body of one response; status 0 means that the server closed the connection without a response."""

    status: int
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Attacker:
    """One tenant's HTTP client, with one connection per request.

    Attributes:
      go: Returns when the attack may start; everything before is preparation.
      statuses: Number of responses by status since the attack started.
      sent: Has an entry for each request that was sent as far as it will be before its response.
    """

    host: str
    port: int
    key: str
    go: Callable[[], Awaitable[None]]
    statuses: Counter[int] = field(default_factory=Counter)
    sent: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    _number: "itertools.count[int]" = field(default_factory=itertools.count)

    async def begin(self) -> None:
        """Ends the preparation."""
        await self.go()
        self.statuses.clear()

    @property
    def salt(self) -> str:
        """Returns a new cache salt, so that no prompt is found in the prefix cache."""
        return f"{os.getpid()}-{next(self._number)}"

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, limit=2**20)

    def head(self, method: str, path: str, length: int, **headers: str) -> bytes:
        fields = {
            "host": self.host,
            "authorization": f"Bearer {self.key}",
            "content-type": "application/json",
            "content-length": str(length),
            "connection": "close",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = (f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()

    async def send(self, method: str, path: str, body: Body = b"", **headers: str) -> Reply:
        """Sends a request, reads its response to the end, and counts it."""
        reply = await self._ask(method, path, body, **headers)
        self.statuses[reply.status] += 1
        return reply

    async def until_served(self) -> None:
        """Returns when the engine runs a request, or there was a response."""
        while True:
            load = await self._ask("GET", "/load")
            if self.statuses or load.status != 200 or load.json["running"]:
                return
            await asyncio.sleep(PAUSE_S)

    async def post(self, path: str, body: Body, **headers: str) -> Reply:
        return await self.send("POST", path, body, **headers)

    async def hang_up(self, path: str, body: Body, seconds: float) -> None:
        """Sends a request and closes the connection after some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.post(path, body)

    async def read_nothing(self, path: str, body: bytes) -> None:
        """Sends a request and keeps the connection open without reading its response."""
        reader, writer = await self.open()
        try:
            writer.write(self.head("POST", path, len(body)) + body)
            await writer.drain()
            self.sent.put_nowait(None)
            status = await reader.readline()
            self.statuses[_status(status)] += 1
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        finally:
            writer.transport.abort()

    async def trickle(self, path: str, content: bytes, length: int) -> None:
        """Announces a body of some length, sends its start, and then a byte every `TRICKLE_S`."""
        reader, writer = await self.open()
        try:
            writer.write(self.head("POST", path, length) + content)
            await writer.drain()
            self.sent.put_nowait(None)
            ended = asyncio.create_task(reader.readline())
            while not ended.done():
                await asyncio.wait([ended], timeout=TRICKLE_S)
                writer.write(b" ")
            self.statuses[_status(ended.result())] += 1
        except OSError:
            self.statuses[0] += 1
        finally:
            writer.transport.abort()

    async def _ask(self, method: str, path: str, body: Body = b"", **headers: str) -> Reply:
        content, reply = encoded(body), Reply(0)
        with contextlib.suppress(OSError):
            reader, writer = await self.open()
            try:
                reply = await self._exchange(reader, writer, self.head(method, path, len(content), **headers), content)
            finally:
                writer.transport.abort()
        return reply

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, content: bytes
    ) -> Reply:
        writer.write(head + content)
        with contextlib.suppress(OSError):  # an early response, such as a 413, may close the connection
            await writer.drain()
        self.sent.put_nowait(None)
        status = _status(await reader.readline())
        while await reader.readline() not in (b"\r\n", b""):
            pass
        kept, num_bytes = list[bytes](), 0
        while data := await reader.read(2**20):
            num_bytes += len(data)
            if num_bytes <= MAX_BODY:
                kept.append(data)
        return Reply(status, b"".join(kept))


def encoded(body: Body) -> bytes:
    """Returns a body as compact JSON; bytes stay unchanged."""
    return body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _status(line: bytes) -> int:
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
      name: Short unique name.
      finding: Number or class of the vulnerability.
      run: Prepares the attack, awaits `Attacker.begin`, and attacks until it is cancelled or done.
      statuses: Statuses that the attacker may receive; any other is a failure.
      needs_store: Whether it attacks what a server has with `--store` only.
      fills_slots: Whether its requests want every slot, so that batches of others wait, as they do for any request.
    """

    name: str
    finding: str
    run: Callable[[Attacker], Awaitable[None]]
    statuses: frozenset[int]
    needs_store: bool = False
    fills_slots: bool = False


async def at_once(count: int, work: Callable[[], Awaitable[Any]]) -> None:
    """Runs the same action over many connections forever, with a pause in between."""

    async def repeat() -> None:
        while True:
            await work()
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(repeat())


async def hold(attacker: Attacker, count: int, work: Callable[[], Awaitable[Any]], *, runs: bool = False) -> None:
    """Runs the same action over many connections, and starts the attack when all have sent their first request.

    Args:
      runs: Starts it only when the engine runs one of them, or one was refused.
    """
    attacker.sent = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        group.create_task(at_once(count, work))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOLD_S):
                for _ in range(count):
                    await attacker.sent.get()
                if runs:
                    await attacker.until_served()
        await attacker.go()


def posting(
    path: str, *bodies: Callable[[], Body], count: int = 1, salted: bool = True, holds: bool = False
) -> Callable[[Attacker], Any]:
    """Returns an attack that posts bodies in turn over several connections.

    Args:
      bodies: Functions that make a body each; called once, before the attack starts.
      salted: Whether each request has its own cache salt.
      holds: Whether the attack starts only when all connections have sent a request and one of them runs.
    """

    async def run(attacker: Attacker) -> None:
        turns = itertools.cycle([encoded(make()) for make in bodies])

        async def work() -> None:
            body = next(turns)
            if salted and body.startswith(b"{"):
                body = b'{"cache_salt": "%b", ' % attacker.salt.encode() + body[1:]
            await attacker.post(path, body)

        if holds:
            await hold(attacker, count, work, runs=True)
        await attacker.begin()
        await at_once(count, work)

    return run


async def stored_item(attacker: Attacker, num_bytes: int) -> Body:
    """Returns a reference to a new item of a conversation."""
    body = {"items": [{"role": "user", "content": "the boat " * (num_bytes // 9)}]}
    path = f"{CONVERSATIONS}/{(await attacker.post(CONVERSATIONS, body)).json['id']}/items"
    return {"type": "item_reference", "id": (await attacker.send("GET", path)).json["data"][0]["id"]}


def token_ids(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(8, VOCAB_SIZE), k=count)


ENDLESS: Final = {"max_tokens": 10**6, "ignore_eos": True, "stream": True, "temperature": 1}


OK: Final = frozenset({200})
REFUSED: Final = frozenset({400, 413})
BUSY: Final = frozenset({429, 503})
ANY: Final = OK | REFUSED | BUSY
LARGE: Final = ANY | {0}
"""Statuses for large bodies: a response that precedes the end of the body may be lost with the connection."""

ENDS, STOPS, TAKES = "ends the process", "stops the others", "takes memory"
