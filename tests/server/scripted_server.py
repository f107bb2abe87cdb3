"""A server that answers with the bytes it was given, cut where the test wants."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from roost.server.client import Address

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}'


def event(data: bytes, end: bytes = b"\n\n") -> bytes:
    return b"data: " + data + end


def text(word: str, finish: str = "null") -> bytes:
    return b'{"choices":[{"text":"%b","finish_reason":%b}]}' % (word.encode(), finish.encode())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def streamed(*events: bytes) -> bytes:
    """A whole answer: two tokens unless events are given."""
    events = events or (event(text("a")), event(text("b", '"stop"')), event(USAGE), event(b"[DONE]"))
    return HEAD + b"".join(chunk(data) for data in events) + b"0\r\n\r\n"


def error(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


@dataclass
class Script:
    """
    Attributes:
      pieces: of the answer to every request, each in a write of its own.
      closes: whether the connection ends after an answer.
      hangs: whether the answer is followed by nothing, not even an end.
      requests: what was received.
      num_connections: so far.
    """

    pieces: Sequence[bytes]
    closes: bool = False
    hangs: bool = False
    requests: list[bytes] = field(default_factory=list)
    num_connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := await _read_head(reader):
                length = next((line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), b": 0")
                self.requests.append(head + await reader.readexactly(int(length.partition(b": ")[2])))
                await self._answer(writer)
                if self.hangs:
                    await reader.read()
                if self.closes:
                    break
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        for piece in self.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Address]:
    """Runs it on a loopback port."""
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        if sys.version_info >= (3, 13):
            server.close_clients()
        await server.wait_closed()
