"""Responses of chat, completions and models match the types of the `openai` package strictly."""

import json
from typing import Any

import httpx
import pytest
from anthropic.types import ModelInfo, message_count_tokens_params, message_create_params
from client_types import checked
from fake_engine import FakeEngine
from openai.types import Completion, Model, completion_create_params
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel, ConfigDict
from roost.server.features.anthropic.schemas import CountTokensBody, MessagesBody
from roost.server.features.responses.body import ResponseBody
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.schemas.body import Fields

HI = [{"role": "user", "content": "hi"}]
OURS = frozenset({"stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs"})
"""Fields that vLLM and llama.cpp have added to OpenAI's responses, and Roost too."""

FIELDS: list[dict[str, Any]] = [
    {},
    {"n": 3, "seed": 1},
    {"stop": "C", "max_tokens": 9},
    {"max_tokens": 0},
    {"return_token_ids": True},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"service_tier": "auto", "user": "me", "metadata": {"a": "b"}},
]
CHAT = [*({**f, "max_tokens": f.get("max_tokens") or 3} for f in FIELDS), {"logprobs": True, "top_logprobs": 2}]
COMPLETIONS = [*FIELDS, {"logprobs": 2}, {"echo": True}, {"prompt": ["a", "b"]}, {"prompt": [[4], [5]]}]
"""Fields of completions, but for `echo` with `logprobs`: OpenAI's client does not know the null of a first token."""


class Chunk(Completion):
    """The client has one type for whole completions and for chunks, whose last alone says why it ended."""

    choices: list["ChunkChoice"]


class ChunkChoice(BaseModel):
    model_config = ConfigDict(extra="allow")

    index: int
    text: str
    finish_reason: str | None
    logprobs: Any = None


class Error(BaseModel):
    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


async def chunks(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    response = await client.post(path, json={"max_tokens": 3, **body, "stream": True})
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [event.removeprefix("data: ") for event in events]


async def whole(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    body = {name: value for name, value in body.items() if name != "stream_options"}
    response = await client.post(path, json={"max_tokens": 3, **body})
    assert response.status_code == 200, response.text
    return response.text


@pytest.mark.parametrize("fields", CHAT)
async def test_chat(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    body = {"messages": HI, **fields}
    answer = checked(ChatCompletion, await whole(client, "/v1/chat/completions", body), OURS)
    got = [checked(ChatCompletionChunk, each, OURS) for each in await chunks(client, "/v1/chat/completions", body)]
    texts = {choice.index: choice.message.content for choice in answer.choices}
    for index, text in texts.items():
        parts = [choice for chunk in got for choice in chunk.choices if choice.index == index]
        assert "".join(part.delta.content or "" for part in parts) == text


@pytest.mark.parametrize("fields", COMPLETIONS)
async def test_completions(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    body = {"prompt": "a", **fields}
    answer = checked(Completion, await whole(client, "/v1/completions", body), OURS)
    got = [checked(Chunk, each, OURS) for each in await chunks(client, "/v1/completions", body)]
    for choice in answer.choices:
        parts = [part for chunk in got for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text


async def test_models(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert (await client.get("/v1/models/")).json() == listed
    assert listed["object"] == "list"
    for model in (*listed["data"], (await client.get("/v1/models/counter")).json()):
        checked(Model, model, frozenset({"max_model_len", "root", "parent"}))


async def test_models_as_anthropics_clients_know_them(client: httpx.AsyncClient) -> None:
    client.headers["anthropic-version"] = "2023-06-01"
    listed = (await client.get("/v1/models")).json()
    (model,) = listed["data"]
    assert listed == {"data": [model], "has_more": False, "first_id": "counter", "last_id": "counter"}
    assert checked(ModelInfo, model).created_at.timestamp() == 1_700_000_000
    assert (await client.get("/v1/models/counter")).json() == model


async def test_errors_whole_and_streamed(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.dies_after = 1
    last = (await client.post("/v1/completions", json={"prompt": "a", "stream": True})).text.split("\n\n")[-2]
    answers = [
        (await client.post("/v1/completions", json={"prompt": 5})).json(),
        (await client.get("/nowhere")).json(),
        json.loads(last.removeprefix("data: ")),
    ]
    for answer in answers:
        checked(Error, answer["error"])


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatBody),
        (completion_create_params.CompletionCreateParamsBase, CompletionBody),
        (response_create_params.ResponseCreateParamsBase, ResponseBody),
        (message_create_params.MessageCreateParamsBase, MessagesBody),
        (message_count_tokens_params.MessageCountTokensParams, CountTokensBody),
    ],
)
def test_each_field_of_the_clients_is_supported_refused_or_ignored(sent: Any, body: type[Fields]) -> None:
    known = {*body.model_fields, *body.field_rules.names}
    assert not sent.__annotations__.keys() - known
