"""Clients that read slowly or not at all, on a real socket."""

import asyncio
import errno
import json
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import live, until
from held_time import held_time
from roost.server.generation.service import Limits, Service


def send_without_reading(url: httpx.URL, body: dict[str, object]) -> socket.socket:
    """Returns a client with small buffers that has sent a request and does not read."""
    parts, data = urlsplit(str(url)), json.dumps(body).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((parts.hostname, parts.port))
    head = "POST /v1/completions HTTP/1.1\r\nhost: roost\r\ncontent-type: application/json\r\n"
    client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return client


@pytest.mark.parametrize("with_ids", [True, False], ids=["with ids", "text only"])
async def test_client_that_stops_reading_is_reset_and_its_slot_is_freed(
    engine: FakeEngine, service: Service, with_ids: bool
) -> None:
    """Other requests are served meanwhile."""
    async with live(service, stall_s=0.5) as client:
        endless = {"prompt": "a", "stream": True, "max_tokens": 10**9, "return_token_ids": with_ids, "ignore_eos": True}
        with send_without_reading(client.base_url, endless) as client_socket:
            await until(lambda: engine.running)
            assert (await client.post("/v1/completions", json={"prompt": "b"})).status_code == 200
            await until(lambda: not engine.running)
            await until(lambda: has_failed(client_socket))


def has_failed(client: socket.socket) -> bool:
    """Returns whether the connection was reset, without reading from it."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


@pytest.mark.parametrize("with_ids", [True, False], ids=["with ids", "text only"])
async def test_client_that_reads_slowly_is_served(engine: FakeEngine, service: Service, with_ids: bool) -> None:
    """The client pauses often, each time for less than the timeout, and receives everything."""
    async with live(service, stall_s=2.0) as client:
        body = {"prompt": "a", "stream": True, "max_tokens": 1500, "return_token_ids": with_ids, "ignore_eos": True}
        with held_time() as time, send_without_reading(client.base_url, body) as reader:
            reader.setblocking(False)
            received = b""
            loop = asyncio.get_running_loop()
            while not received.endswith(b"0\r\n\r\n"):
                for _ in range(40):  # while the engine generates more than the client will read
                    await time.skip(0.0015)
                received += await loop.sock_recv(reader, 2**16)
        whole = (await client.post("/v1/completions", json={**body, "stream": False})).json()
    assert b"data: [DONE]" in received
    chunks = [json.loads(line[6:]) for line in received.splitlines() if line.startswith(b"data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]


async def test_unread_output_is_bounded_in_bytes(engine: FakeEngine, service: Service) -> None:
    """The slot is freed before the timeout; a client that resumes reads without a gap, and then the error."""
    async with live(replace(service, limits=Limits(max_unread_bytes=1000)), stall_s=60.0) as client:
        endless = {"prompt": "a", "stream": True, "max_tokens": 10**9, "return_token_ids": True, "ignore_eos": True}
        with send_without_reading(client.base_url, endless) as reader:
            await until(lambda: engine.running)
            await until(lambda: not engine.running)
            reader.setblocking(False)
            received, loop = b"", asyncio.get_running_loop()
            while not received.endswith(b"0\r\n\r\n"):
                received += await loop.sock_recv(reader, 2**16)
    *chunks, last = [json.loads(line[6:]) for line in received.splitlines() if line.startswith(b"data: ")]
    assert last["error"]["code"] == "client_too_slow"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    token_ids = [token_id for choice in choices for token_id in choice["token_ids"]]
    assert token_ids == [(token_ids[0] + step) % engine.vocab_size for step in range(len(token_ids))]
    assert max(len(choice["token_ids"]) for choice in choices) > 50  # joined while the client did not read
