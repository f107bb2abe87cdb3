"""An HTTP/1.1 client for streams: a parser in C and a plain call per piece, so that it is not what limits a benchmark.

It follows no redirects, unpacks nothing and goes through no proxy.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import SplitResult, urlsplit

import httptools
import orjson

_MAX_ERROR_BYTES: Final = 64 * 1024
"""As much of an answer that is no success is kept."""

type Sink = Callable[[bytes, float], None]
"""Takes a piece of a body, and when it came, in seconds of `time.perf_counter`."""


class ClientError(Exception):
    """An exchange failed; the text is one short line without anything that differs between two such failures."""


class UrlError(ValueError):
    """This is no address of a server."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the body, which is empty where a sink took it."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
      prefix: what comes before `/v1` in every path.
    """

    host: str
    port: int
    is_tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Reads `http://host:port`, with or without `/v1` at its end.

        Raises:
          UrlError: it is not such an address.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UrlError(f"{url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UrlError(f"{url!r} is no URL of a server; write it as http://127.0.0.1:8000")
        return cls._of(parts, port)

    @classmethod
    def _of(cls, parts: SplitResult, port: int | None) -> "Address":
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname or "", port or (443 if is_tls else 80), is_tls, prefix)

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpClient:
    """Keeps connections open and uses them again; each carries one exchange at a time.

    Args:
      address: the server.
      api_key: sent as a bearer token.
      timeout_s: how long an exchange may take in all.
    """

    def __init__(self, address: Address, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._tls = ssl.create_default_context() if address.is_tls else None
        key = "" if api_key is None else f"Authorization: Bearer {api_key}\r\n"
        self._headers = f"Host: {address.authority}\r\nUser-Agent: roost-bench\r\n{key}"

    async def get(self, path: str) -> Answer:
        """Fetches a small answer.

        Raises:
          ClientError: there was none.
        """
        pieces: list[bytes] = []
        answer = await self._exchange(self._head("GET", path), lambda piece, now: pieces.append(piece))
        return Answer(answer.status, answer.body or b"".join(pieces))

    async def post(self, path: str, body: Mapping[str, Any], sink: Sink) -> Answer:
        """Sends JSON; a successful answer's body goes to the sink, piece by piece as it comes.

        Raises:
          ClientError: the exchange failed; what came before has gone to the sink.
        """
        data = orjson.dumps(body)
        head = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        return await self._exchange(self._head("POST", path, head) + data, sink)

    async def close(self) -> None:
        """Closes every connection."""
        self._idle.clear()
        for connection in tuple(self._open):
            connection.close()
            await connection.lost

    def _head(self, method: str, path: str, headers: str = "") -> bytes:
        return f"{method} {self._address.prefix}{path} HTTP/1.1\r\n{self._headers}{headers}\r\n".encode()

    async def _exchange(self, request: bytes, sink: Sink) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._attempt(request, sink)
        except TimeoutError:
            raise ClientError(f"no end within the timeout of {self._timeout_s:g} s") from None

    async def _attempt(self, request: bytes, sink: Sink) -> Answer:
        """Tries once more where a kept connection turns out to have been closed by the server meanwhile."""
        while connection := self._take_idle():
            try:
                return await self._carry(connection, request, sink)
            except _StaleConnection:
                continue
        try:
            return await self._carry(await self._connect(), request, sink)
        except _StaleConnection:
            raise ClientError("the server closed the connection without an answer") from None

    async def _carry(self, connection: "_Connection", request: bytes, sink: Sink) -> Answer:
        try:
            answer = await connection.exchange(request, sink)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        return None

    async def _connect(self) -> "_Connection":
        loop, address = asyncio.get_running_loop(), self._address
        try:
            _, connection = await loop.create_connection(_Connection, address.host, address.port, ssl=self._tls)
        except ConnectionRefusedError:
            raise ClientError("connection refused") from None
        except OSError as error:
            raise ClientError(f"cannot connect: {_reason(error)}") from None
        self._open.add(connection)
        connection.lost.add_done_callback(lambda _: self._open.discard(connection))
        return connection


class _StaleConnection(Exception):
    """The connection ended before the first byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection. The methods from `on_header` on are what httptools calls.

    Attributes:
      lost: done when there is no connection any more.
    """

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None
        self._answer: asyncio.Future[Answer] | None = None
        self._keeps_alive = True

    @property
    def is_reusable(self) -> bool:
        """Whether another exchange may follow."""
        return self._keeps_alive and self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes, sink: Sink) -> Answer:
        """Sends a whole request and waits for the whole answer."""
        assert self._transport is not None
        self._sink, self._has_begun = sink, False
        self._status, self._has_length, self._error_body = 0, False, bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport  # uvloop's has another base than asyncio's

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._answer is None or self._answer.done():
            self._keeps_alive = False  # nobody asked: whatever it is, it would be taken for the next answer
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._fail(cast(Exception, error.__context__))  # of the sink, so a bug
        except httptools.HttpParserError:
            self._fail(ClientError("the answer is not HTTP/1.1"))

    def connection_lost(self, error: Exception | None) -> None:
        self._keeps_alive = False
        self.lost.set_result(None)
        if self._answer is None or self._answer.done():
            return
        if not self._has_begun:
            self._fail(_StaleConnection())
        elif self._status and not self._has_length:
            self.on_message_complete()  # an answer that tells no length ends with its connection
        else:
            self._fail(ClientError("the server closed the connection in the middle of the answer"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._has_length |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        if self._status == 200:
            self._sink(piece, self._now)
        elif len(self._error_body) < _MAX_ERROR_BYTES:
            self._error_body += piece

    def on_message_complete(self) -> None:
        if self._status < 200:
            return  # 100 Continue and the like: the answer is still to come
        self._keeps_alive &= self._has_length and self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._status, bytes(self._error_body)))

    def _fail(self, error: Exception) -> None:
        self._keeps_alive = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
