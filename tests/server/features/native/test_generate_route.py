"""`/generate`: ids in, ids out. And what a body becomes before it gets there."""

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, make_service, served_model
from roost.server.app import create_app
from roost.server.text.tokenizer import TokenIdsOnly

HI = [{"role": "user", "content": "hi"}]


async def generate(client: httpx.AsyncClient, *token_ids: int, **fields: Any) -> httpx.Response:
    return await client.post("/generate", json={"token_ids": token_ids, "max_tokens": 3, **fields})


async def test_ids_in_ids_out(client: httpx.AsyncClient) -> None:
    answer = (await generate(client, 4, 5)).json()
    assert answer["id"].startswith("gen-")
    assert (answer["object"], answer["model"]) == ("tokens", "counter")
    assert answer["choices"] == [
        {"index": 0, "finish_reason": "length", "stop_reason": None, "token_ids": [6, 7, 8], "logprobs": None}
    ]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (2, 3)


async def test_logprobs_of_both_sides(client: httpx.AsyncClient) -> None:
    (choice,) = (await generate(client, 4, 5, max_tokens=1, logprobs=2, prompt_logprobs=1)).json()["choices"]
    assert choice["logprobs"] == {"own": [-0.6], "top": [[[6, -0.6], [7, -1.6]]]}
    assert choice["prompt_logprobs"] == {"own": [None, -0.5], "top": [None, [[5, -0.5]]]}


async def test_a_prompt_is_scored_without_going_on(client: httpx.AsyncClient) -> None:
    (choice,) = (await generate(client, 4, 5, 6, max_tokens=0, prompt_logprobs=0)).json()["choices"]
    assert (choice["token_ids"], choice["prompt_logprobs"]["own"]) == ([], [None, -0.5, -0.6])


async def test_a_stream_says_the_same(client: httpx.AsyncClient) -> None:
    fields = {"n": 2, "logprobs": 1, "prompt_logprobs": 0}
    whole = (await generate(client, 4, 5, **fields)).json()
    response = await generate(client, 4, 5, **fields, stream=True, stream_options={"include_usage": True})
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [token_id for part in parts for token_id in part["token_ids"]] == choice["token_ids"]
        assert [value for part in parts for value in part["logprobs"]["own"]] == choice["logprobs"]["own"]
        assert parts[0]["prompt_logprobs"] == choice["prompt_logprobs"]
        assert [part["finish_reason"] for part in parts] == [None, None, "length"]


async def test_it_goes_on_until_the_model_stops(client: httpx.AsyncClient) -> None:
    (choice,) = (await generate(client, 104, max_tokens=None)).json()["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == ([105, 106, 107], "stop")


@pytest.mark.parametrize("ids", [[], [VOCAB_SIZE], [-1], ["a"], [True], None, "a"])
async def test_ids_that_are_none(client: httpx.AsyncClient, ids: Any) -> None:
    response = await client.post("/generate", json={"token_ids": ids})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "token_ids")


async def test_no_tokenizer_is_needed(engine: FakeEngine) -> None:
    service = make_service(engine, served_model(TokenIdsOnly(VOCAB_SIZE)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://r") as client:
        assert (await generate(client, 4)).json()["choices"][0]["token_ids"] == [5, 6, 7]


@pytest.mark.parametrize("path", ["/v1/chat/completions/render", "/apply-template"])
async def test_a_chat_is_shown_as_it_is_read(client: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    messages = [{"role": "system", "content": "<eos>"}, *HI]
    shown = (await client.post(path, json={"messages": messages, "temperature": 0})).json()
    assert shown["prompt"] == (
        "<bos><start_of_turn>user\n<eos>\n\nhi<end_of_turn>\n<start_of_turn>model\n"  # and this <eos> is text
    )
    await client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert shown["token_ids"] == list(engine.requests[0].prompt_token_ids)
    assert shown["count"] == len(shown["token_ids"])
    assert len(engine.requests) == 1


async def test_completions_are_shown_one_by_one(client: httpx.AsyncClient) -> None:
    body = {"prompt": ["a", "xyz"], "truncate_prompt_tokens": 2}
    shown = (await client.post("/v1/completions/render", json=body)).json()
    assert shown == [
        {"prompt": "a", "token_ids": [2, 4], "count": 2},
        {"prompt": "z", "token_ids": [2, 29], "count": 2},
    ]
