"""Limits on what clients send: each offender gets an error response, and others are still served."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import cast

import pytest
import uvicorn
from fake_engine import FakeEngine
from fake_server import until
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.transport.connection import MAX_PIPELINED, LimitedConnection

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt": "a", "max_tokens": 2}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class ShortLimits(LimitedConnection):
    max_head_bytes = 2000
    head_s = 0.3
    body_s = 0.6
    max_connections = 20


@pytest.fixture
async def port(service: Service) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(service),
        http=cast(type[asyncio.Protocol], partial(ShortLimits, stall_s=5.0)),
        lifespan="off",
        log_config=None,
        ws="none",
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def talk(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Sends the pieces, and returns all bytes received until the connection is closed."""
    async with connected(port) as (reader, writer):
        response = asyncio.create_task(reader.read())
        for piece in pieces:
            if not response.done():
                writer.write(piece)
                await asyncio.sleep(pause)
        async with asyncio.timeout(5):
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
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_malformed_http_is_refused(port: int, data: bytes) -> None:
    assert error(await talk(port, data))[0] == 400
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


async def test_slow_head_times_out(port: int) -> None:
    response = await talk(port, *[b"GET / HTTP/1.1\r\n", *[b"A: b\r\n"] * 20], pause=0.05)
    assert error(response) == (408, "request_too_slow")
    await assert_serves(port)


async def test_slow_body_times_out(port: int, engine: FakeEngine) -> None:
    response = await talk(port, HEAD + b"Content-Length: 100\r\n\r\n", *[b"{"] * 20, pause=0.1)
    assert error(response) == (408, "request_too_slow")
    assert not engine.requests
    await assert_serves(port)


async def test_silent_connection_is_closed(port: int) -> None:
    assert await talk(port) == b""


async def test_idle_connection_stays_open_between_requests(port: int) -> None:
    async with connected(port) as (reader, writer):
        for _ in range(2):
            writer.write(WHOLE)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"}}}")
            await asyncio.sleep(0.4)  # longer than the head timeout, but no head has started
        writer.write(b"GET ")
        async with asyncio.timeout(2):
            assert error(await reader.read()) == (408, "request_too_slow")


async def test_head_timeout_does_not_end_a_running_request(port: int, engine: FakeEngine) -> None:
    """The engine takes longer than the head timeout, while the client has started another request."""
    engine.gate.clear()
    async with connected(port) as (reader, writer):
        writer.write(WHOLE + b"\r\n")
        await asyncio.sleep(0.8)
        engine.gate.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_pipelined_requests_are_served_in_order(port: int, engine: FakeEngine) -> None:
    engine.gate.clear()
    async with connected(port) as (reader, writer):
        writer.write(WHOLE + WHOLE[:-5])  # the second is incomplete while the first runs
        await asyncio.sleep(0.8)
        engine.gate.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(WHOLE[-5:])
        assert (await reader.readuntil(b"\r\n\r\n")).endswith(b"\r\n\r\n")


async def test_connections_over_the_limit_are_refused(port: int) -> None:
    async with asyncio.timeout(5):
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        response = await talk(port)
        assert error(response) == (503, "overloaded")
        for _, writer in waiting:
            writer.close()
        await asyncio.gather(*(reader.read() for reader, _ in waiting))
    await assert_serves(port)


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
