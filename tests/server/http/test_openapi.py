"""Successful responses in `/openapi.json`, compared with what the server sends."""

import json
from typing import Any

import httpx
import jsonschema
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, make_service, served_model
from roost.server.app import create_app
from roost.server.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
REPORTS: dict[str, Any] = {"return_token_ids": True, "return_timings": True, "return_warnings": True}
INCLUDE = {"include": ["message.output_text.logprobs"]}
USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
TOOL = {"name": "f", "parameters": {"type": "object"}}
TOOLS = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required", "max_tokens": 40}

POSTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HI, "max_tokens": 2}),
    (CHAT, {"messages": HI, "max_tokens": 2, "prompt_logprobs": 1, **LOGPROBS, **REPORTS}),
    (CHAT, {"messages": HI, **TOOLS}),
    ("/v1/completions", {"prompt": "ab", "max_tokens": 2}),
    (
        "/v1/completions",
        {"prompt": "ab", "max_tokens": 2, "logprobs": 2, "echo": True, "prompt_logprobs": 1, **REPORTS},
    ),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 2, **INCLUDE}),
    ("/v1/responses", {"input": "hi", "background": True}),
    ("/v1/messages", {"messages": HI, "max_tokens": 2}),
    ("/v1/messages/count_tokens", {"messages": HI}),
    ("/generate", {"token_ids": [4, 5], "max_tokens": 2}),
    ("/generate", {"token_ids": [4, 5], "max_tokens": 2, "logprobs": 2, "prompt_logprobs": 2, **REPORTS}),
    ("/tokenize", {"prompt": "ab"}),
    ("/detokenize", {"tokens": [4, 5]}),
    ("/apply-template", {"messages": HI}),
    ("/v1/completions/render", {"prompt": ["a", "b"]}),
    ("/abort_request", {"request_id": "x"}),
]
STREAMS = [
    *((path, body) for path, body in POSTS[:9] if "prompt_logprobs" not in body and not path.endswith("count_tokens")),
    (CHAT, {"messages": HI, "max_tokens": 2, **LOGPROBS, **REPORTS, **USAGE}),
    ("/generate", {"token_ids": [4, 5], "max_tokens": 2, **USAGE}),
]
GETS = ["/v1/models", "/v1/models/counter", "/health", "/health/ready", "/load", "/version", "/server_info"]
GETS += ["/tokenizer_info", "/v1/states"]


@pytest.fixture(scope="module")
def description(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `/openapi.json`."""
    return create_app(make_service(FakeEngine(VOCAB_SIZE), served_model(tokenizer))).openapi()


def check(description: dict[str, Any], method: str, path: str, value: Any, media_type: str) -> None:
    """Checks a value against the schema of a successful response."""
    check_value(description, path, value, content_of(description, method, path, media_type)["schema"])


def content_of(description: dict[str, Any], method: str, path: str, media_type: str) -> dict[str, Any]:
    return description["paths"][path][method]["responses"]["200"]["content"][media_type]


def check_value(description: dict[str, Any], path: str, value: Any, schema: dict[str, Any]) -> None:
    """Checks a value against a schema, which has to name its fields, except those of typed events."""
    assert schema, path
    jsonschema.validate(value, {**schema, "components": description["components"]})
    for key in value if isinstance(value, dict) else ():
        assert key in named(description, schema) or "Event" in str(schema), (path, key)


def named(description: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """Returns the properties that a schema, or one of its alternatives, names."""
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    alternatives = (named(description, each) for each in schema.get("anyOf", ()))
    return set(schema.get("properties", {})).union(*alternatives)


@pytest.mark.parametrize(("path", "body"), POSTS)
async def test_posted_responses_match(
    client: httpx.AsyncClient, description: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    check(description, "post", path, response.json(), "application/json")


@pytest.mark.parametrize("path", GETS)
async def test_fetched_responses_match(client: httpx.AsyncClient, description: dict[str, Any], path: str) -> None:
    template = "/v1/models/{model_id}" if path == "/v1/models/counter" else path
    for headers in ({}, {"anthropic-version": "2023-06-01"}):
        check(description, "get", template, (await client.get(path, headers=headers)).json(), "application/json")


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_events_match(
    client: httpx.AsyncClient, description: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    response = await client.post(path, json={**body, "stream": True})
    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in response.text.split("\n\n")[:-1]]
    assert events, response.text
    schema = content_of(description, "post", path, "text/event-stream")["itemSchema"]
    for event in events:
        jsonschema.validate(event, schema)
        if event["data"] != "[DONE]":
            data = schema["properties"]["data"]
            check_value(description, path, json.loads(event["data"]), data.get("anyOf", [data])[-1]["contentSchema"])


async def test_stored_objects_match(client: httpx.AsyncClient, description: dict[str, Any]) -> None:
    stored = (await client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 2})).json()["id"]
    template = "/v1/responses/{response_id}"
    for end in ("", "/input_items"):
        value = (await client.get(f"/v1/responses/{stored}{end}")).json()
        check(description, "get", template + end, value, "application/json")
    deleted = (await client.delete(f"/v1/responses/{stored}")).json()
    check(description, "delete", template, deleted, "application/json")


async def test_calls_match(
    client: httpx.AsyncClient, description: dict[str, Any], engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    call = tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    for path, body in (
        ("/v1/responses", {"input": "hi", "tools": [{"type": "function", **TOOL}]}),
        (
            "/v1/messages",
            {"messages": HI, "max_tokens": 99, "tools": [{"name": "f", "input_schema": {}}]},
        ),
    ):
        engine.says = call
        response = await client.post(path, json=body)
        check(description, "post", path, response.json(), "application/json")


async def test_references_resolve(description: dict[str, Any]) -> None:
    text = json.dumps(description)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= description["components"]["schemas"].keys()
