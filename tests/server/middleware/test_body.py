"""What bodies may be: their size, and how JSON is read."""

import asyncio
import codecs
import gzip
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from fake_server import until
from roost.server.api.common.schema_base import MAX_MESSAGES
from roost.server.app import create_app
from roost.server.errors import ApiError
from roost.server.generation.service import Service
from roost.server.middleware.body import MAX_CONTAINERS, parse_json

JSON = {"content-type": "application/json"}


@pytest.fixture
async def small(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Takes bodies of 1,000 bytes."""
    transport = httpx.ASGITransport(create_app(service, max_body_bytes=1000))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


async def chunked(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100):
        yield data[start : start + 100]


async def test_a_body_has_a_largest_size(small: httpx.AsyncClient) -> None:
    for num_bytes, status in ((1000, 200), (1001, 413)):
        content = b'{"prompt": ""}'.ljust(num_bytes)
        for body in (content, chunked(content)):
            response = await small.post("/v1/completions", content=body, headers=JSON)
            assert response.status_code == status
            assert status == 200 or response.json()["error"]["code"] == "request_too_large"


async def test_all_bodies_together_have_one_too(small: httpx.AsyncClient) -> None:
    """32 of the largest size may be on their way in."""
    arrive = asyncio.Event()
    num_begun = 0

    async def slow() -> AsyncIterator[bytes]:
        nonlocal num_begun
        yield b'{"prompt": ""'.ljust(998)
        num_begun += 1
        await arrive.wait()
        yield b" }"

    bodies = [asyncio.create_task(small.post("/v1/completions", content=slow(), headers=JSON)) for _ in range(32)]
    await until(lambda: num_begun == 32)
    refused = await small.post("/v1/completions", content=b'{"prompt": ""}'.ljust(600), headers=JSON)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    arrive.set()
    assert {response.status_code for response in await asyncio.gather(*bodies)} == {200}
    again = await small.post("/v1/completions", content=b'{"prompt": ""}'.ljust(600), headers=JSON)
    assert again.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        b"\x00",
        b'{"a": 1} x',
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(ApiError, match="the body is not valid JSON: ") as caught:
        parse_json(body)
    assert caught.value.status_code == 400
    assert len(str(caught.value)) < 200


def test_json_is_read_as_python_reads_it() -> None:
    text = (
        '{"a": [1, -2.5, 1e3, true, null, "\\u00e9\\ud83d\\ude00", 123456789012345678901234567890], "a": {}, "b": []}'
    )
    assert parse_json(text.encode()) == json.loads(text)


async def test_a_long_body_says_what_is_wrong_too(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", content=b'{"prompt": "'.ljust(100_000, b"x"), headers=JSON)
    assert response.status_code == 400
    assert "not valid JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("/v1/chat/completions", b'{"messages":['),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":['),
        ("/v1/chat/completions", b'{"messages":[{"role":"assistant","content":"a","tool_calls":['),
        ("/v1/chat/completions", b'{"stop":['),
        ("/v1/chat/completions", b'{"tools":['),
        ("/v1/chat/completions", b'{"guided_choice":['),
        ("/v1/completions", b'{"prompt":["a",'),
        ("/v1/completions", b'{"prompt":[[1],'),
        ("/v1/completions", b'{"prompt":"a","bad_words":['),
        ("/v1/completions", b'{"prompt":"a","stop_token_ids":['),
        ("/v1/responses", b'{"input":['),
        ("/v1/responses", b'{"input":"a","include":['),
        ("/v1/messages", b'{"max_tokens":1,"messages":['),
        ("/v1/messages", b'{"max_tokens":1,"system":['),
        ("/detokenize", b'{"tokens":['),
    ],
)
async def test_many_mistakes_cost_no_more_than_one(client: httpx.AsyncClient, path: str, head: bytes) -> None:
    """Each takes some 100 microseconds and 1 kB to write down."""
    content = head + b",".join([b"1.5"] * 100_000) + _close(head)
    began = time.perf_counter()
    response = await client.post(path, content=content, headers=JSON)
    assert response.status_code == 400
    assert time.perf_counter() - began < 2.0


def _close(head: bytes) -> bytes:
    """What ends the arrays and objects that are open."""
    stack = []
    for char in head.decode():
        if char in "[{":
            stack.append({"[": "]", "{": "}"}[char])
        elif char in "]}":
            stack.pop()
    return "".join(reversed(stack)).encode()


async def test_a_conversation_has_an_end(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


async def test_a_prompt_may_be_too_long(service: Service) -> None:
    app = create_app(replace(service, max_prompt_tokens=4))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        assert (await client.post("/v1/completions", json={"prompt": [[4], [5] * 4]})).status_code == 200
        error = (await client.post("/v1/completions", json={"prompt": [[4], [5] * 5]})).json()["error"]
        assert error["code"] == "context_length_exceeded"
        cut = await client.post("/v1/completions", json={"prompt": [5] * 9, "truncate_prompt_tokens": 4})
        assert cut.status_code == 200


async def test_a_compressed_body_is_refused_by_name(small: httpx.AsyncClient) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/states/import"):
        response = await small.post(path, content=gzip.compress(b"{}"), headers={**JSON, "content-encoding": "gzip"})
        assert response.status_code == 415
        assert "content-encoding 'gzip' is not supported" in response.json()["error"]["message"]
    response = await small.post(
        "/v1/completions", content=b'{"prompt": "a"}', headers=JSON | {"content-encoding": "identity"}
    )
    assert response.status_code == 200


async def test_a_byte_order_mark_is_skipped(small: httpx.AsyncClient) -> None:
    response = await small.post("/v1/completions", content=codecs.BOM_UTF8 + b'{"prompt": "a"}', headers=JSON)
    assert response.status_code == 200
    assert (await small.post("/v1/completions", content=codecs.BOM_UTF8 * 2 + b"{}", headers=JSON)).status_code == 400


async def test_a_body_has_so_many_arrays_and_objects(client: httpx.AsyncClient) -> None:
    """Those in texts are none."""
    text = "[{" * MAX_CONTAINERS
    assert (await client.post("/v1/completions", json={"prompt": "a", "user": text + '"\\'})).status_code == 200
    for empty in ("[]", "{}"):
        content = '{"prompt": "a", "user": [' + ",".join([empty] * MAX_CONTAINERS) + "]}"
        response = await client.post("/v1/completions", content=content.encode(), headers=JSON)
        assert response.status_code == 400
        assert "at most 131072 arrays and objects" in response.json()["error"]["message"]
