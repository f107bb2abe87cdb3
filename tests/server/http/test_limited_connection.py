"""Limits on what clients send: each offender gets an error response, and others are still served."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import batched
from typing import cast

import pytest
import uvicorn
from fake_engine import FakeEngine
from fake_server import until
from held_time import HeldTime, held_time
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.connection import (
    MAX_PIPELINED,
    RESERVED_CONNECTIONS,
    BodyPace,
    LimitedConnection,
    OpenConnections,
    set_body_pace,
)
from roost.server.observability.metrics import ConnectionCounts
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "a", "max_tokens": 2}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class SmallLimits(LimitedConnection):
    max_head_bytes = 2000
    head_s = 120.0
    pace = BodyPace(120.0, 120.0)


class ShortLimits(SmallLimits):
    """Counts the bytes of the last connection, so that a test can tell when the server has received them."""

    head_s = 0.3
    pace = BodyPace(idle_s=0.55, part_s=0.6, part_bytes=100)
    num_received = num_made = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        ShortLimits.num_received += len(data)

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        ShortLimits.num_received = 0
        ShortLimits.num_made += 1


class PatientLimits(LimitedConnection):
    """Gives clients more time than a test takes, so that only the number of connections is a limit."""

    head_s = 120.0
    pace = BodyPace(120.0, 120.0)


MAX_BUSY = 4


@asynccontextmanager
async def serving(
    app: ASGIApp, connection: type[LimitedConnection], connections: OpenConnections, *listeners: socket.socket
) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(connection, stall_s=60.0, connections=connections)),
        timeout_keep_alive=120,
        lifespan="off",
        log_config=None,
        ws="none",
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=list(listeners)))
    try:
        yield
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def port(service: Service) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    async with serving(create_app(service), SmallLimits, OpenConnections(20), listener):
        yield listener.getsockname()[1]


@pytest.fixture
async def hasty_port(service: Service) -> AsyncIterator[int]:
    """Port of a server whose clients have `ShortLimits`."""
    listener = socket.create_server(("127.0.0.1", 0))
    ShortLimits.num_made = 0
    async with serving(create_app(service), ShortLimits, OpenConnections(20), listener):
        yield listener.getsockname()[1]


@dataclass(frozen=True)
class Ports:
    """Ports of a server whose public one takes `MAX_BUSY` connections with a request."""

    public: int
    admin: int
    connections: OpenConnections

    def counts(self, name: str = "public") -> ConnectionCounts:
        return self.connections.counts_by_port()[name]


@pytest.fixture
async def ports(service: Service) -> AsyncIterator[Ports]:
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(2)]
    public, admin = (each.getsockname()[1] for each in listeners)
    connections = OpenConnections(MAX_BUSY, admin)
    async with serving(create_app(service), PatientLimits, connections, *listeners):
        yield Ports(public, admin, connections)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def talk(port: int, *pieces: bytes) -> bytes:
    """Sends the pieces, and returns all bytes received until the connection is closed."""
    async with connected(port) as (reader, writer):
        response = asyncio.create_task(reader.read())
        for piece in pieces:
            if not response.done():
                writer.write(piece)
                await asyncio.sleep(0)
        async with asyncio.timeout(60):
            return await response


def error(response: bytes) -> tuple[int, str | None]:
    """Returns status and code of a response, which must have OpenAI's shape and an id."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head
    assert b"\r\nconnection: close" in head
    content = json.loads(body)["error"]
    assert content.keys() == {"message", "type", "param", "code"}
    return int(head.split()[1]), content["code"]


async def assert_serves(port: int) -> None:
    response = await talk(port, WHOLE.replace(b"Host: r\r\n", b"Host: r\r\nConnection: close\r\n"))
    assert response.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a plain port
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: r\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",  # request smuggling
        HEAD + b"Content-Length: " + b"9" * 500 + b"\r\n\r\n",
        "GET /é HTTP/1.1\r\n\r\n".encode(),
        HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_malformed_http_is_refused(port: int, data: bytes) -> None:
    assert error(await talk(port, data))[0] == 400
    await assert_serves(port)


@pytest.mark.parametrize(
    "lines", [b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"]
)
async def test_transfer_encodings_but_chunked_are_refused(port: int, lines: bytes) -> None:
    assert error(await talk(port, HEAD + lines + b"\r\n2\r\n{}\r\n0\r\n\r\n"))[0] == 415
    await assert_serves(port)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /" + b"a" * 3000],
        [b"GET / HTTP/1.1\r\nA: " + b"a" * 3000],
        [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 600],
        [b"GET / HTTP/1.1\r\n", *[b"A: b\r\n"] * 600],
        [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 600 + b"\r\n" * 2],
    ],
)
async def test_oversized_head_is_refused(port: int, pieces: list[bytes]) -> None:
    assert error(await talk(port, *pieces)) == (431, "request_too_large")
    await assert_serves(port)


async def dribble(port: int, start: bytes, piece: bytes, seconds: float) -> bytes:
    """Sends a start, and then pieces for this time, and returns all bytes received until the connection is closed.

    Another client is served later.
    """
    with held_time() as time:
        async with connected(port) as (reader, writer):
            writer.write(start)
            await time.until(lambda: ShortLimits.num_received == len(start))
            for count in range(1, 10):
                await time.skip(seconds / 10)
                writer.write(piece)
                await time.until(lambda number=count: ShortLimits.num_received == len(start) + number * len(piece))
            assert not reader.at_eof()
            await time.skip(seconds / 10 + 0.001)
            response = await reader.read()
        await assert_serves(port)
    return response


async def test_slow_head_times_out(hasty_port: int) -> None:
    response = await dribble(hasty_port, b"GET / HTTP/1.1\r\n", b"A: b\r\n", ShortLimits.head_s)
    assert error(response) == (408, "request_too_slow")


async def test_slow_body_times_out(hasty_port: int, engine: FakeEngine) -> None:
    response = await dribble(hasty_port, HEAD + b"Content-Length: 100\r\n\r\n", b"{", ShortLimits.pace.part_s)
    assert error(response) == (408, "request_too_slow")
    assert len(engine.requests) == 1  # the other client's


async def test_long_body_has_time_for_each_piece(hasty_port: int) -> None:
    with held_time() as time:
        async with connected(hasty_port) as (reader, writer):
            body = BODY.ljust(5 * ShortLimits.pace.part_bytes)
            writer.write(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
            for piece in (bytes(each) for each in batched(body, ShortLimits.pace.part_bytes)):
                await time.skip(ShortLimits.pace.part_s - 0.1)
                before = ShortLimits.num_received
                writer.write(piece)
                await time.until(lambda before=before: ShortLimits.num_received > before)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_of_which_nothing_arrives_times_out(hasty_port: int) -> None:
    """Its beginning is so long that the next part of it could take longer."""
    with held_time() as time:
        async with connected(hasty_port) as (reader, writer):
            start = HEAD + b"Content-Length: 1000\r\n\r\n"
            writer.write(start)
            await time.until(lambda: ShortLimits.num_received == len(start))
            await time.skip(0.3)
            writer.write(bytes(ShortLimits.pace.part_bytes))
            await time.until(lambda: ShortLimits.num_received > len(start))
            await time.skip(ShortLimits.pace.idle_s - 0.001)
            assert not reader.at_eof()
            await time.skip(0.002)
            response = await reader.read()
    assert error(response) == (408, "request_too_slow")
    assert b"nothing of the body arrived within 0.55 s" in response


class Reader:
    """An application that reads a body in pieces, once it may, and returns its size.

    Args:
      pace: Pace that its route sets; None for the connection's.

    Attributes:
      may_read: Set when it may read.
      has_begun: Whether the request has arrived.
      num_read: Bytes that it has read.
    """

    def __init__(self, pace: BodyPace | None = None) -> None:
        self.may_read = asyncio.Event()
        self.has_begun = False
        self.num_read = 0
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._pace is not None:
            set_body_pace(scope, self._pace)
        self.has_begun = True
        await self.may_read.wait()
        async for piece in Request(scope, receive).stream():
            self.num_read += len(piece)
        await PlainTextResponse(str(self.num_read), headers={"connection": "close"})(scope, receive, send)


@asynccontextmanager
async def sending_to(
    app: ASGIApp, headers: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, HeldTime]]:
    """Connects to an application, sends the head of a request with these headers, and holds the time."""
    listener = socket.create_server(("127.0.0.1", 0))
    async with (
        serving(app, ShortLimits, OpenConnections(20), listener),
        connected(listener.getsockname()[1]) as (reader, writer),
    ):
        with held_time() as time:
            writer.write(HEAD + headers + b"\r\n\r\n")
            yield reader, writer, time


async def test_time_in_which_the_server_reads_nothing_does_not_count() -> None:
    size, app = 2**20, Reader()
    async with sending_to(app, b"Content-Length: %d" % size) as (reader, writer, time):
        writer.write(bytes(size - 1))
        await time.until(lambda: ShortLimits.num_received > 2**16)
        for _ in range(20):
            await time.skip(ShortLimits.pace.part_s)
        app.may_read.set()
        await time.until(lambda: app.num_read == size - 1)
        assert not reader.at_eof()
        await time.skip(ShortLimits.pace.idle_s - 0.001)
        writer.write(b"x")
        assert (await reader.read()).endswith(b"\r\n\r\n%d" % size)


async def test_a_route_sets_how_slowly_its_body_may_arrive() -> None:
    app = Reader(BodyPace(idle_s=10.0, part_s=100.0, part_bytes=100))
    app.may_read.set()
    async with sending_to(app, b"Content-Length: 10") as (reader, writer, time):
        for count in range(9):
            await time.until(lambda count=count: app.has_begun and app.num_read == count)
            await time.skip(9.9)
            writer.write(b"x")
        await time.until(lambda: app.num_read == 9)
        await time.skip(9.999)
        assert not reader.at_eof()
        await time.skip(0.002)
        assert error(await reader.read()) == (408, "request_too_slow")


async def test_a_response_that_ends_its_connection_is_read_before_the_rest_of_the_body() -> None:
    """A client that never stops sending is read for a moment only."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        set_body_pace(scope, PatientLimits.pace)
        await PlainTextResponse("no", 413, headers={"connection": "close"})(scope, receive, send)

    async with sending_to(refuse, b"Transfer-Encoding: chunked") as (reader, writer, time):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        assert await reader.readexactly(2) == b"no"
        for _ in range(3):
            received = ShortLimits.num_received
            writer.write(b"1\r\nx\r\n")
            await time.until(lambda received=received: ShortLimits.num_received > received)
            await time.skip(0.333)
        assert not reader.at_eof()
        await time.skip(0.002)
        assert await reader.read() == b""


async def test_silent_connection_is_closed(hasty_port: int) -> None:
    with held_time() as time:
        async with connected(hasty_port) as (reader, _):
            closed = asyncio.create_task(reader.read())
            await time.until(lambda: ShortLimits.num_made > 0)
            await time.skip(ShortLimits.head_s - 0.001)
            assert not closed.done()
            await time.skip(0.002)
            assert await closed == b""


async def test_idle_connection_stays_open_between_requests(hasty_port: int) -> None:
    with held_time() as time:
        async with connected(hasty_port) as (reader, writer):
            for _ in range(2):
                writer.write(WHOLE)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                await reader.readuntil(b"}}}")
                await time.skip(0.4)  # longer than the head timeout, but no head has started
            before = ShortLimits.num_received
            writer.write(b"GET ")
            await time.until(lambda: ShortLimits.num_received > before)
            await time.skip(0.4)
            assert error(await reader.read()) == (408, "request_too_slow")


async def wait_for_bytes(time: HeldTime, num_bytes: int) -> None:
    """Waits until the server has received these bytes of a connection, and lets more time pass than it has for one."""
    await time.until(lambda: ShortLimits.num_received == num_bytes)
    for _ in range(8):
        await time.skip(0.1)


async def test_head_timeout_does_not_end_a_running_request(hasty_port: int, engine: FakeEngine) -> None:
    """The engine takes longer than the head timeout, while the client has started another request."""
    engine.gate.clear()
    with held_time() as time:
        async with connected(hasty_port) as (reader, writer):
            writer.write(WHOLE + b"\r\n")
            await wait_for_bytes(time, len(WHOLE) + 2)
            engine.gate.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_pipelined_requests_are_served_in_order(hasty_port: int, engine: FakeEngine) -> None:
    engine.gate.clear()
    with held_time() as time:
        async with connected(hasty_port) as (reader, writer):
            writer.write(WHOLE + WHOLE[:-5])  # the second is incomplete while the first runs
            await wait_for_bytes(time, 2 * len(WHOLE) - 5)
            engine.gate.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(WHOLE[-5:])
            assert (await reader.readuntil(b"\r\n\r\n")).endswith(b"\r\n\r\n")


HEALTH = b"GET /health HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"
METRICS = HEALTH.replace(b"/health", b"/metrics")


@asynccontextmanager
async def flooded(port: int, count: int, data: bytes = b"") -> AsyncIterator[list[asyncio.StreamReader]]:
    """Opens connections, oldest first, which send this and nothing more."""
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(count):
            reader, writer = await stack.enter_async_context(connected(port))
            writer.write(data)
            readers.append(reader)
        yield readers


@pytest.mark.parametrize("data", [b"", b"GET /v1/models HTTP/1.1\r\nA: "], ids=["silent", "half a head"])
async def test_silent_connections_make_room_for_requests(ports: Ports, data: bytes) -> None:
    """However many there are, requests, probes and metrics are served on both ports; the oldest are closed."""
    count = MAX_BUSY + 5 * RESERVED_CONNECTIONS
    async with flooded(ports.public, count, data) as public, flooded(ports.admin, count, data):
        await until(lambda: ports.counts().num_dropped == count - MAX_BUSY - RESERVED_CONNECTIONS)
        for port in (ports.public, ports.admin):
            for request in (HEALTH, METRICS):
                assert (await talk(port, request)).startswith(b"HTTP/1.1 200 ")
        await assert_serves(ports.public)
        assert await public[0].read() == b""
        assert not public[-1].at_eof()
        assert ports.counts().num_open <= MAX_BUSY + RESERVED_CONNECTIONS
        assert (ports.counts().num_refused, ports.counts("admin").num_refused) == (0, 0)


async def test_a_flood_of_one_port_leaves_the_other_alone(ports: Ports) -> None:
    async with flooded(ports.admin, 1) as admin, flooded(ports.public, 3 * RESERVED_CONNECTIONS):
        await until(lambda: ports.counts().num_dropped > 0)
        assert ports.counts("admin").num_dropped == 0
        assert not admin[0].at_eof()


async def test_silent_connections_go_before_idle_ones(ports: Ports) -> None:
    """A client that has sent a request keeps its connection while there are enough that have sent none."""
    async with connected(ports.public) as (reader, writer):
        writer.write(HEALTH.replace(b"Connection: close\r\n", b""))
        await reader.readuntil(b"}")
        async with flooded(ports.public, 4 * RESERVED_CONNECTIONS):
            await until(lambda: ports.counts().num_dropped > RESERVED_CONNECTIONS)
            writer.write(HEALTH)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def test_idle_connections_make_room(ports: Ports) -> None:
    """They are closed, oldest first, rather than new ones before their requests have arrived."""
    answered = HEALTH.replace(b"Connection: close\r\n", b"")
    async with flooded(ports.public, MAX_BUSY + RESERVED_CONNECTIONS, answered) as idle:
        for reader in idle:
            await reader.readuntil(b"}")
        async with flooded(ports.public, 2) as silent:
            await until(lambda: ports.counts().num_dropped == 2)
            assert [await reader.read() for reader in idle[:2]] == [b"", b""]
            assert not any(reader.at_eof() for reader in (*idle[2:], *silent))


async def test_requests_over_the_limit_are_refused(ports: Ports, engine: FakeEngine) -> None:
    """Probes and metrics are still served, and requests once others have ended."""
    engine.gate.clear()
    async with flooded(ports.public, MAX_BUSY, WHOLE) as busy:
        await until(lambda: ports.counts().num_busy == MAX_BUSY)
        assert error(await talk(ports.public, WHOLE)) == (503, "overloaded")
        async with flooded(ports.public, 3 * RESERVED_CONNECTIONS):
            for request in (HEALTH, METRICS, HEALTH.replace(b"/health", b"/health/ready?a=b")):
                assert (await talk(ports.public, request)).startswith(b"HTTP/1.1 200 ")
            assert error(await talk(ports.public, WHOLE)) == (503, "overloaded")
        engine.gate.set()
        for reader in busy:
            assert (await reader.readuntil(b"}}}")).startswith(b"HTTP/1.1 200 ")
        await until(lambda: ports.counts().num_busy == 0)
        await assert_serves(ports.public)
    await until(lambda: ports.counts().num_open == 0)


async def test_a_connection_is_busy_until_its_last_pipelined_request_ends(ports: Ports, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with connected(ports.public) as (reader, writer):
        writer.write(WHOLE * 3)
        await until(lambda: len(engine.requests) == 1)
        assert ports.counts().num_busy == 1
        engine.gate.set()
        for _ in range(3):
            await reader.readuntil(b"}}}")
        await until(lambda: ports.counts().num_busy == 0)
        assert ports.counts().num_open == 1


STREAM = b'{"prompt": "a", "max_tokens": 3, "stream": true}'
OLD_STREAM = b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
    STREAM
)


async def test_stream_for_http_1_0_has_no_chunks(port: int) -> None:
    """The stream ends with the connection; other responses have a length."""
    head, _, body = (await talk(port, OLD_STREAM + STREAM)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    assert all(line.startswith(b"data: ") for line in body.split(b"\n\n")[:-1])
    whole = await talk(port, OLD_STREAM.replace(b"%d" % len(STREAM), b"%d" % len(BODY)) + BODY)
    assert b"content-length: " in whole.partition(b"\r\n\r\n")[0]
    json.loads(whole.partition(b"\r\n\r\n")[2])


async def test_http_1_1_requires_one_host_header(port: int) -> None:
    for head in (b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        assert error(await talk(port, head)) == (400, None)
    assert (await talk(port, b"GET /health HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    await assert_serves(port)


async def test_probes_of_load_balancers_are_served(port: int) -> None:
    """HAProxy's default check sends OPTIONS, others send HEAD; neither response has a body."""
    for head in (b"HEAD /health HTTP/1.0\r\n\r\n", b"OPTIONS / HTTP/1.0\r\n\r\n", b"OPTIONS * HTTP/1.0\r\n\r\n"):
        response = await talk(port, head)
        assert response.split()[1] in (b"200", b"204")
        assert response.partition(b"\r\n\r\n")[2] == b""


async def test_pipelined_requests_are_bounded(port: int) -> None:
    """Sixty requests are served in order; thousands end the connection."""
    one = b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"
    assert (await talk(port, one * 60 + last)).count(b"HTTP/1.1 200 ") == 61
    with suppress(ConnectionResetError):  # sent by the system, since unread requests remain
        responses = await talk(port, one * 5000)
        assert responses.count(b"HTTP/1.1 200 ") <= MAX_PIPELINED + 1
    await assert_serves(port)


ENDLESS = b'{"prompt": "a", "max_tokens": 1000000, "ignore_eos": true, "stream": true}'


async def test_disconnect_with_a_pipelined_request_frees_the_slot(port: int, engine: FakeEngine) -> None:
    """uvicorn signals a disconnect only to the last request of a connection."""
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(ENDLESS)
    async with connected(port) as (reader, writer):
        writer.write(head + ENDLESS + b"GET /health HTTP/1.1\r\nHost: r\r\n\r\n")
        await reader.readuntil(b"data: ")
        assert len(engine.running) == 1
        writer.transport.abort()
    await until(lambda: not engine.running)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_body_that_is_too_large_is_read_so_that_its_client_sees_why(port: int, version: bytes) -> None:
    """Clients that close the connection, as urllib does, send all of their body before they read."""
    size = 64 * 2**20
    head = HEAD.replace(b"1.1", version) + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % size
    async with connected(port) as (reader, writer):
        writer.write(head)
        for _ in range(size // 2**20):
            writer.write(bytes(2**20))
            await writer.drain()
        response = await reader.read()
    assert b" 413 " in response.split(b"\r\n")[0]
    assert b"raise --max-body-bytes" in response
