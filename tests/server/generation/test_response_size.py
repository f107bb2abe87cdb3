"""How much an answer may hold, and that the event loop has little to do with large ones."""

import asyncio
import gc
import json
import threading
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of, make_service, served_model
from fastapi import FastAPI
from pydantic import field_validator
from roost.server.app import create_app
from roost.server.features.native.generate import GenerateBody, generate_spec
from roost.server.generation import requests
from roost.server.generation.service import Service
from roost.server.generation.spec import MAX_RESPONSE_BYTES, response_size
from roost.server.http.middleware import BodyLimit
from roost.server.http.responses import large_to_json, to_json
from roost.server.http.routes import JsonRoute
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.schemas.body import BodyCheck, Fields
from roost.server.text.tokenizer import SentencePieceTokenizer, Tokenizer
from starlette.types import Message, Scope
from tokenizer_files import train_sentencepiece

JSON = {"content-type": "application/json"}
ON_LOOP = 300
"""Calls to the tokenizer that the event loop may make for one request."""


class SpyTokenizer(Tokenizer):
    """Counts its calls on the event loop's thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.bos_id = tokenizer.bos_id
        self.end_token_ids = tokenizer.end_token_ids
        self.has_text = tokenizer.has_text
        self.max_token_bytes = tokenizer.max_token_bytes
        self.num_on_loop = 0
        self.num_elsewhere = 0

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        self._count(len(text))
        return self._tokenizer.encode(text, control_tokens=control_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        self._count(1)
        return self._tokenizer.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        self._count(1)
        return self._tokenizer.token_text(token_id)

    def is_control(self, token_id: int) -> bool:
        return self._tokenizer.is_control(token_id)

    def _count(self, number: int) -> None:
        if threading.current_thread() is threading.main_thread():
            self.num_on_loop += number
        else:
            self.num_elsewhere += number


@pytest.fixture
def spy(tokenizer: Tokenizer) -> SpyTokenizer:
    return SpyTokenizer(tokenizer)


@pytest.fixture
async def watched(spy: SpyTokenizer, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(make_service(engine, served_model(spy)))
    spy.num_on_loop = 0
    async with client_of(app) as client:
        yield client


IDS = [4 + number % 20 for number in range(20_000)]
PART = {"type": "text", "text": "a"}
TEXT = "abc def ghi " * 6000
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"description": TEXT}}}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": IDS, "echo": True, "max_tokens": 1}),
        ("/v1/completions", {"prompt": IDS, "echo": True, "max_tokens": 1, "stream": True}),
        ("/v1/completions", {"prompt": IDS, "echo": True, "logprobs": 2, "max_tokens": 0}),
        ("/v1/completions", {"prompt": IDS, "echo": True, "logprobs": 2, "max_tokens": 1, "stream": True}),
        ("/v1/completions", {"prompt": IDS, "prompt_logprobs": 2, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [IDS[:500]] * 40, "echo": True, "max_tokens": 0}),
        ("/v1/completions/render", {"prompt": IDS}),
        ("/v1/completions/render", {"prompt": [TEXT[:1000]] * 100}),
        ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": TEXT}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 1}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": TEXT}], "prompt_logprobs": 1, "max_tokens": 1},
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}] * 3000, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL], "max_tokens": 1}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": [PART] * 9000}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}] * 3000, "max_output_tokens": 1}),
        ("/tokenize", {"prompt": "\u2581" * 20_000}),
        ("/detokenize", {"tokens": IDS}),
    ],
)
async def test_the_event_loop_does_little_for_large_requests(
    watched: httpx.AsyncClient, spy: SpyTokenizer, path: str, body: dict[str, Any]
) -> None:
    response = await watched.post(path, json=body)
    assert response.status_code == 200, response.text[:1000]
    assert spy.num_on_loop < ON_LOOP
    assert spy.num_elsewhere > 1000


async def test_log_probabilities_of_a_long_answer_are_written_elsewhere(
    watched: httpx.AsyncClient, engine: FakeEngine, spy: SpyTokenizer
) -> None:
    engine.says = [5] * 1000
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    response = await watched.post("/v1/chat/completions", json={**body, "max_tokens": 1000})
    assert len(response.json()["choices"][0]["logprobs"]["content"]) == 1000
    assert spy.num_on_loop < 5000  # text is made token by token; the alternatives are 40,000 names
    assert spy.num_elsewhere > 20_000


async def test_large_and_small_answers_are_the_same(client: httpx.AsyncClient) -> None:
    """Both ways of writing give the same bytes."""
    body = {"prompt": [5, 6, 7], "echo": True, "logprobs": 3, "prompt_logprobs": 2, "max_tokens": 2, "n": 2}
    answers = []
    for extra in ({}, {"padding": "x" * 100_000}):
        response = await client.post("/v1/completions", json={**body, "return_token_ids": True, **extra})
        answers.append(response.text[response.text.index('"model"') :])
    assert answers[0] == answers[1]


def test_large_content_is_the_same_json() -> None:
    texts = ["a", "\u2028é\U0001f600\x00", ""]
    for value in (
        {},
        {"choices": []},
        {"choices": [{}, {"logprobs": {"tokens": texts * 600, "top": [{"a": -1.5}] * 513, "none": None}}]},
        {"a": {"b": {"c": {"d": {"e": {"f": [texts] * 600}}}}}},
        [[1] * 512, (1,) * 513, [[]] * 1024],
        {"token_ids": tuple(range(5000)), "huge": [10**30] * 3},
    ):
        assert large_to_json(value).replace(b" ", b"") == to_json(value).replace(b" ", b"")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a" * 300_000, "echo": True, "n": 128}, "echo"),
        ("/v1/completions", {"prompt": [5] * 60_000, "prompt_logprobs": 20}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": [5] * 60_000, "echo": True, "logprobs": 20}, "echo"),
        ("/v1/completions", {"prompt": [5] * 60_000, "prompt_logprobs": 20, "n": 2}, "prompt_logprobs"),
        ("/generate", {"token_ids": [5] * 60_000, "prompt_logprobs": 20, "stream": True}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": [5] * 200_000, "return_token_ids": True, "n": 128}, "return_token_ids"),
        (
            "/v1/completions",
            {"prompt": "a", "n": 128, "logprobs": 20, "min_tokens": 4096, "max_tokens": 4096},
            "min_tokens",
        ),
        ("/v1/completions", {"prompt": "a", "n": 128, "min_tokens": 100_000, "max_tokens": 100_000}, "min_tokens"),
        ("/v1/completions/render", {"prompt": [""] * 1_000_000}, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 1_000_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [], **{f"f{number}": 1 for number in range(257)}}, None),
    ],
)
async def test_an_answer_that_would_be_too_large_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, body: dict[str, Any], param: str | None
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 400, response.text[:1000]
    error = response.json()["error"]
    assert error["param"] in (param, "")
    assert engine.requests == []


async def test_an_answer_without_a_limit_gets_one(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.says = [5]
    chat = {"messages": [{"role": "user", "content": "a"}]}
    for extra, is_limited in (({}, True), ({"stream": True}, False), ({"max_tokens": 10**8}, True)):
        await client.post("/v1/chat/completions", json={**chat, **extra})
        limit = engine.requests[-1].params.max_tokens
        assert (limit is not None and limit * 300 < MAX_RESPONSE_BYTES) is is_limited


PROMPT = [4 + number % 20 for number in range(1000)]


@pytest.mark.parametrize(
    ("path", "kind", "fields"),
    [
        ("/v1/completions", CompletionBody, {"echo": True, "n": 4}),
        ("/v1/completions", CompletionBody, {"echo": True, "logprobs": 0}),
        ("/v1/completions", CompletionBody, {"echo": True, "logprobs": 5, "n": 2}),
        ("/v1/completions", CompletionBody, {"prompt_logprobs": 20}),
        ("/v1/completions", CompletionBody, {"return_token_ids": True, "n": 16}),
        ("/generate", GenerateBody, {"prompt_logprobs": 20}),
    ],
)
async def test_no_answer_takes_more_than_was_computed(
    service: Service, path: str, kind: type[CompletionBody] | type[GenerateBody], fields: dict[str, Any]
) -> None:
    """The peak is measured by tracemalloc and includes the engine's part."""
    name = "prompt" if kind is CompletionBody else "token_ids"
    content = {name: PROMPT, "max_tokens": 1, **fields}
    body = kind.model_validate(content)
    convert: Any = requests.completion if kind is CompletionBody else generate_spec
    computed, _ = response_size(await convert(body, service), service.model.tokenizer.max_token_bytes)
    assert await _peak(service, path, content) <= computed + FLOOR


async def test_no_long_answer_takes_more_than_its_limit_allows(engine: FakeEngine, service: Service) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20}
    body = ChatBody.model_validate({**chat, "ignore_eos": True, "max_tokens": 10**8})
    engine.says = [5] * 500
    content = {**body.model_dump(exclude_unset=True), "max_tokens": 500}
    _, (params,) = response_size(await requests.chat(body, service), service.model.tokenizer.max_token_bytes)
    assert params.max_tokens is not None
    assert await _peak(service, "/v1/chat/completions", content) / 500 <= MAX_RESPONSE_BYTES / params.max_tokens


FLOOR = 300_000
"""Bytes that a request of 1,000 ids takes in any case, the parsed body above all."""


async def _peak(service: Service, path: str, content: dict[str, Any]) -> int:
    """Returns the most that a request takes, its own body and a client's memory left out."""
    app, raw = create_app(service), json.dumps(content).encode()
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    messages: list[Message] = [{"type": "http.request", "body": raw}]
    statuses: list[int] = []

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await never.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    never = asyncio.Event()
    await app(dict(scope), receive, send)  # fills caches
    messages.append({"type": "http.request", "body": raw})
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        await app(dict(scope), receive, send)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert statuses == [200, 200]
    return peak - before


async def test_a_large_body_becomes_its_model_elsewhere(service: Service) -> None:
    threads: list[threading.Thread] = []

    class Watched(Fields):
        texts: list[str]

        @field_validator("texts")
        @classmethod
        def _note(cls, texts: list[str]) -> list[str]:
            threads.append(threading.current_thread())
            return texts

    app = FastAPI()
    app.router.route_class = JsonRoute
    app.state.service, app.state.check_body = service, BodyCheck(service.model.names)

    @app.post("/")
    async def count(body: Watched) -> int:
        return len(body.texts)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(BodyLimit(app, service.admissions)), base_url="http://roost"
    ) as client:
        assert (await client.post("/", json={"texts": [""] * 10})).json() == 10
        assert (await client.post("/", json={"texts": [""] * 10_000})).json() == 10_000
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


def test_a_run_of_space_marks_is_one_fragment() -> None:
    """Each was encoded for itself, and so was the nothing between two of them."""
    texts: list[str] = []

    class Counting(SentencePieceTokenizer):
        def _library_encode(self, text: str) -> list[int]:
            texts.append(text)
            return super()._library_encode(text)

    tokenizer = Counting(train_sentencepiece(), 512)
    one = tokenizer.encode("\u2581")
    texts.clear()
    assert tokenizer.encode("\u2581" * 10_000) == one * 10_000
    assert len(texts) < 10
