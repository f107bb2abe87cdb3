"""HTTP/1.1 client of a server with OpenAI's API, fast enough not to limit a benchmark.

httpx, whose parser is Python, takes four times the processor time for each piece. This client follows no redirects,
decompresses nothing and uses no proxy.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import orjson

from .settings import SettingsError
from .terminal.exits import CommandError

_MAX_READ_BYTES: Final = 64 * 1024
"""Maximum bytes of one read."""

type Sink = Callable[[bytes, float], None]
"""Receives a piece of a body, and its time in seconds of `time.perf_counter`."""


class ClientError(Exception):
    """An exchange failed; the text is one short line that is equal for equal failures."""


@dataclass(frozen=True, slots=True)
class Response:
    """Status, body and headers of a response. The body is empty if a sink received it; header names are lower-case."""

    status: int
    body: bytes
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server.

    Attributes:
      host: Name or IP address.
      port: TCP port.
      is_tls: Whether the server speaks HTTPS.
      prefix: Path in front of `/v1`.
    """

    host: str
    port: int
    is_tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Parses `http://host:port`, with or without `/v1` at its end.

        Raises:
          ValueError: The text is not such an address.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("it is not the URL of a server; write it as http://127.0.0.1:8000")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, parts.port or (443 if is_tls else 80), is_tls, prefix)

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpClient:
    """Keeps connections open and reuses them. Each connection carries one exchange at a time.

    Args:
      address: Address of the server.
      api_key: Key that is sent as a bearer token; None sends none.
      timeout_s: Maximum time of a whole exchange, in seconds.
    """

    def __init__(self, address: Address, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if address.is_tls else None
        key = "" if api_key is None else f"Authorization: Bearer {api_key}\r\n"
        self._headers = f"Host: {address.authority}\r\nUser-Agent: roost-bench\r\n{key}"

    async def get(self, path: str) -> Response:
        """Fetches a response with its whole body.

        Raises:
          ClientError: The exchange failed.
        """
        return await self._exchange("GET", path)

    async def delete(self, path: str) -> Response:
        """Deletes a resource; see `get`."""
        return await self._exchange("DELETE", path)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | orjson.Fragment | bytes,
        sink: Sink | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Response:
        """Sends JSON, or bytes as they are.

        Args:
          sink: Receives the body of a successful response, piece by piece as it arrives; None leaves it whole.
          headers: Further headers of the request.

        Raises:
          ClientError: The exchange failed; the sink may have received pieces before.
        """
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {**headers, "Content-Type": kind, "Content-Length": str(len(data))}
        return await self._exchange("POST", path, headers, data, sink)

    async def close(self) -> None:
        """Closes the connections, none of which is in use."""
        while self._idle:
            self._idle.pop().close()

    async def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        data: bytes = b"",
        sink: Sink | None = None,
    ) -> Response:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {self._address.prefix}{path} HTTP/1.1\r\n{self._headers}{lines}\r\n"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._attempt(head.encode() + data, sink)
        except TimeoutError:
            raise ClientError(f"no end within the timeout of {self._timeout_s:g} s") from None

    async def _attempt(self, request: bytes, sink: Sink | None) -> Response:
        """Uses an idle connection, or the next one if the server has closed it."""
        while True:
            is_new = not self._idle
            connection = await self._connect() if is_new else self._idle.pop()
            try:
                return await self._carry(connection, request, sink)
            except _StaleConnection:
                if is_new:
                    raise ClientError("the server closed the connection without an answer") from None

    async def _carry(self, connection: "_Connection", request: bytes, sink: Sink | None) -> Response:
        try:
            response = await connection.exchange(request, sink)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def _connect(self) -> "_Connection":
        try:
            streams = await asyncio.open_connection(self._address.host, self._address.port, ssl=self._tls)
        except ConnectionRefusedError:
            raise ClientError("connection refused") from None
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise ClientError(f"cannot connect: {reason}") from None
        return _Connection(*streams)


class _StaleConnection(Exception):
    """The connection ended before the first byte of a response."""


class _Connection:
    """One connection. httptools calls the methods whose names begin with `on_`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._keeps_alive = True

    @property
    def is_reusable(self) -> bool:
        """Returns whether another exchange may follow."""
        return self._keeps_alive and not self._reader.at_eof() and not self._writer.is_closing()

    async def exchange(self, request: bytes, sink: Sink | None) -> Response:
        """Sends a whole request and waits for the whole response.

        Raises:
          _StaleConnection: The connection ended before the first byte of the response.
          ClientError: The response is not complete, or not HTTP/1.1.
        """
        self._sink, self._status, self._body, self._is_complete = sink, 0, bytearray(), False
        self._headers: dict[bytes, bytes] = {}
        self._parser, data, self._keeps_alive = httptools.HttpResponseParser(self), b"", False
        self._writer.write(request)
        while not self._is_complete:
            is_first, data = not data, await self._read()
            self._now = time.perf_counter()
            if data:
                self._parse(data)
            elif is_first:
                raise _StaleConnection
            elif not self._status or self._has_length():
                raise ClientError("the server closed the connection in the middle of the answer")
            else:
                break  # a response without a length ends with its connection
        return Response(self._status, bytes(self._body), self._headers)

    def close(self) -> None:
        """Closes the connection immediately."""
        self._writer.transport.abort()

    async def _read(self) -> bytes:
        """Returns the next bytes; none at the end of the connection."""
        try:
            return await self._reader.read(_MAX_READ_BYTES)
        except OSError:
            return b""

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise cast(Exception, error.__context__) from None  # of the sink, which is a bug
        except httptools.HttpParserError:
            raise ClientError("the answer is not HTTP/1.1") from None

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def _has_length(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        if self._status == 200 and self._sink is not None:
            self._sink(piece, self._now)
        else:
            self._body += piece

    def on_message_complete(self) -> None:
        self._is_complete = self._status >= 200  # unless it is an interim response, such as 100 Continue
        self._keeps_alive = self._is_complete and self._has_length() and self._parser.should_keep_alive()


_MAX_MESSAGE: Final = 160
"""Maximum characters of a server's error that are repeated."""


def server_addresses(urls: Sequence[str], api_key: str | None, settings: Mapping[str, Any]) -> list[Address]:
    """Returns the addresses in the value of `--url`.

    Args:
      urls: Addresses as the user wrote them.
      api_key: Key of the servers; None sends none.
      settings: Settings of a model in this process, all of which must be None.

    Raises:
      SettingsError: An address or the key cannot be used, or a setting was given.
    """
    for name, value in settings.items():
        if value is not None:
            raise SettingsError(f"--{name.replace('_', '-')} is for a model that is loaded here, not with --url")
    try:
        addresses = [Address.parse(url.strip()) for url in urls]
    except ValueError as error:
        raise SettingsError(f"--url {','.join(urls)}: {error}") from None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise SettingsError("--api-key must be printable ASCII in one line")
    return addresses


async def server_version(client: HttpClient) -> str | None:
    """Returns the version that Roost and vLLM report at /version; None if the server has no such path.

    Raises:
      CommandError: The server cannot be reached.
    """
    try:
        response = await client.get("/version")
    except ClientError as error:
        raise CommandError(f"the server cannot be reached: {error}; see --url") from None
    found = _json(response)
    version = found.get("version") if isinstance(found, dict) else None
    return None if version is None else str(version)


async def first_model(client: HttpClient) -> str:
    """Returns the id of the first model that the server lists.

    Raises:
      CommandError: The server does not list a model.
    """
    try:
        response = await client.get("/v1/models")
        return str(_json(response)["data"][0]["id"])
    except ClientError as error:
        raise CommandError(f"the server cannot be asked for its models: {error}; see --url") from None
    except (KeyError, IndexError, TypeError):
        reason = http_failure(response) if response.status != 200 else "it lists none"
        fix = "give its key with --api-key or ROOST_API_KEY" if response.status == 401 else "name one with --model"
        raise CommandError(f"the server does not list its models ({reason}); {fix}") from None


def http_failure(response: Response) -> str:
    """Returns a line about a response whose status is not 200."""
    try:
        body = orjson.loads(response.body)
        message = error_message(body) if isinstance(body, dict) else ""
    except orjson.JSONDecodeError:
        message = ""
    return f"HTTP {response.status}" + (f": {message}" if message else "")


def error_message(body: Mapping[str, Any]) -> str:
    """Returns the text of an error in OpenAI's shape, or in another server's shape."""
    error = body.get("error") or body
    text = error.get("message") or error.get("detail") or "" if isinstance(error, dict) else error
    return " ".join(str(text).split())[:_MAX_MESSAGE]


class EventParser:
    """Returns the data of each complete event.

    Lines may end in LF or CRLF. Comments and the names and ids of events are dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the events that a piece completes. Pieces may end anywhere."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [event for line in lines if (event := self._feed_line(line.removesuffix(b"\r"))) is not None]

    def _feed_line(self, line: bytes) -> bytes | None:
        """Returns the event that a line ends, if any: an empty line ends an event."""
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            return None
        if line or not self._data:
            return None
        event = b"\n".join(self._data)
        self._data = []
        return event


def _json(response: Response) -> Any:
    try:
        return orjson.loads(response.body) if response.status == 200 else {}
    except orjson.JSONDecodeError:
        return {}
