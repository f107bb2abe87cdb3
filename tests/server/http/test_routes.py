"""Strict parsing of JSON bodies, limits on what they contain, and HEAD and OPTIONS for existing routes."""

import asyncio
import codecs
import gzip
import json
import time
from dataclasses import replace

import httpx
import pytest
from fake_server import client_of
from roost.server.app import create_app
from roost.server.errors.request_errors import ApiError
from roost.server.generation.admission import Admission
from roost.server.generation.service import Limits, Service
from roost.server.schemas.body import MAX_MESSAGES
from roost.server.schemas.json_limits import MAX_CONTAINERS, decode_json

JSON = {"content-type": "application/json"}


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
        b"\x00",
        b'{"a": 1} x',
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_malformed_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="the body is not valid JSON: ") as caught:
        asyncio.run(Admission().parse(body, dict))
    assert caught.value.status_code == 400
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 100_000, "is not valid JSON: recursion limit exceeded at line 1 column 202"),
        (b'{"a":\n' * 100_000, "is not valid JSON: recursion limit exceeded at line 202 column 1"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "is not valid JSON: number out of range at line 1 column 4308"),
        (b'{"a": -' + b"9" * 5000 + b".5}", "is not valid JSON: number out of range at line 1 column 4309"),
        (b"[" * 201 + b"]" * 201, None),
        (b"[" + b"9" * 4300 + b"]", None),
    ],
)
def test_valid_json_beyond_a_limit_is_named(body: bytes, message: str | None) -> None:
    if message is None:
        decode_json(body)
        return
    with pytest.raises(ApiError) as caught:
        asyncio.run(Admission().parse(body, dict))
    assert caught.value.message == f"the body {message}"


def test_json_parses_to_the_same_values_as_pythons_parser() -> None:
    text = (
        '{"a": [1, -2.5, 1e3, true, null, "\\u00e9\\ud83d\\ude00", 123456789012345678901234567890], "a": {}, "b": []}'
    )
    assert decode_json(text.encode()) == json.loads(text)


async def test_error_of_a_body_parsed_on_a_worker_thread(client: httpx.AsyncClient) -> None:
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
        ("/v1/chat/completions", b'{"structured_outputs":{"choice":['),
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
async def test_many_invalid_values_are_refused_quickly(client: httpx.AsyncClient, path: str, head: bytes) -> None:
    """Describing one invalid value takes about 100 µs and 1 kB."""
    content = head + b",".join([b"1.5"] * 100_000) + _close(head)
    began = time.process_time()  # of the processor: others may use it meanwhile
    response = await client.post(path, content=content, headers=JSON)
    assert response.status_code == 400
    assert time.process_time() - began < 2.0


def _close(head: bytes) -> bytes:
    """Returns the brackets that close the open arrays and objects."""
    stack = []
    for char in head.decode():
        if char in "[{":
            stack.append({"[": "]", "{": "}"}[char])
        elif char in "]}":
            stack.pop()
    return "".join(reversed(stack)).encode()


async def test_too_many_messages_are_refused(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


async def test_prompt_over_the_maximum_length_is_refused(service: Service) -> None:
    async with client_of(create_app(replace(service, limits=Limits(max_prompt_tokens=4)))) as client:
        assert (await client.post("/v1/completions", json={"prompt": [[4], [5] * 4]})).status_code == 200
        error = (await client.post("/v1/completions", json={"prompt": [[4], [5] * 5]})).json()["error"]
        assert error["code"] == "context_length_exceeded"
        cut = await client.post("/v1/completions", json={"prompt": [5] * 9, "truncate_prompt_tokens": 4})
        assert cut.status_code == 200


async def test_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/states/import"):
        response = await client.post(path, content=gzip.compress(b"{}"), headers={**JSON, "content-encoding": "gzip"})
        assert response.status_code == 415
        assert "content-encoding 'gzip' is not supported" in response.json()["error"]["message"]
    response = await client.post(
        "/v1/completions", content=b'{"prompt": "a"}', headers=JSON | {"content-encoding": "identity"}
    )
    assert response.status_code == 200


async def test_byte_order_mark_is_skipped(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/completions", content=codecs.BOM_UTF8 + b'{"prompt": "a"}', headers=JSON)
    assert response.status_code == 200
    assert (await client.post("/v1/completions", content=codecs.BOM_UTF8 * 2 + b"{}", headers=JSON)).status_code == 400


async def test_too_many_arrays_and_objects_are_refused(client: httpx.AsyncClient) -> None:
    """Brackets inside strings don't count."""
    text = "[{" * MAX_CONTAINERS
    assert (await client.post("/v1/completions", json={"prompt": "a", "user": text + '"\\'})).status_code == 200
    for empty in ("[]", "{}"):
        content = '{"prompt": "a", "user": [' + ",".join([empty] * MAX_CONTAINERS) + "]}"
        response = await client.post("/v1/completions", content=content.encode(), headers=JSON)
        assert response.status_code == 400
        assert "at most 131072 arrays and objects" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready", "/metrics", "/version", "/v1/models", "/load"])
async def test_head_is_get_without_the_body(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/health", "GET, HEAD, OPTIONS"),
        ("/v1/completions", "OPTIONS, POST"),
        ("/v1/states/some", "DELETE, GET, HEAD, OPTIONS"),
    ],
)
async def test_options_lists_the_methods(client: httpx.AsyncClient, path: str, allow: str) -> None:
    response = await client.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allow, b"")


async def test_unknown_paths_stay_unknown(client: httpx.AsyncClient) -> None:
    assert (await client.head("/nothing")).status_code == 404
    assert (await client.options("/nothing")).status_code == 404
    assert (await client.head("/v1/completions")).status_code == 405


async def test_head_does_not_wait_for_a_stream(client: httpx.AsyncClient, service: Service) -> None:
    body = {"input": "hi", "background": True, "stream": True, "max_output_tokens": 3}
    created = await client.post("/v1/responses", json=body)
    response_id = created.text.partition('"id":"')[2].partition('"')[0]
    head = await client.head(f"/v1/responses/{response_id}?stream=true")
    assert (head.status_code, head.content) == (200, b"")
