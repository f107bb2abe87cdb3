"""Successful responses in `/openapi.json`, compared with what the server sends."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, client_of, make_service, served_model
from roost.engine import CacheStats, EngineStats
from roost.server.app import create_app, open_features
from roost.server.feature import Opening
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.settings import load_settings
from roost.server.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
REPORTS: dict[str, Any] = {"return_token_ids": True}
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
        ("/v1/messages", {"messages": HI, "max_tokens": 99, "tools": [{"name": "f", "input_schema": {}}]}),
    ):
        engine.says = call
        response = await client.post(path, json=body)
        check(description, "post", path, response.json(), "application/json")


LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}'
UPLOAD: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("in.jsonl", LINE)}}
BATCH = {"endpoint": "/v1/completions", "completion_window": "24h"}


class Recorder:
    """Sends requests that must succeed, and records the types of all bodies.

    Attributes:
      ids: Values of the parameters of paths.
      types: Types by path, method, and "Request" or "Response".
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.ids = {"model_id": "counter"}
        self.types = defaultdict[tuple[str, str, str], set[str]](set)

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = await self._client.request(method, path.format(**self.ids), **options)
        assert response.status_code == 200, f"{method} {path}: {response.text}"
        for message in (response.request, response):
            if kind := message.headers.get("content-type"):
                self.types[path, method.lower(), type(message).__name__].add(kind.partition(";")[0])
        return response

    async def make(self, name: str, path: str, **options: Any) -> None:
        """Creates an object, whose id is a parameter of later paths."""
        self.ids[name] = (await self.send("POST", path, **options)).json()["id"]


async def send_to_fixed_paths(to: Recorder) -> None:
    for path, body in POSTS:
        await to.send("POST", path, json=body)
    for path, body in STREAMS:
        await to.send("POST", path, json={**body, "stream": True})
    for path in (*GETS, "/health_generate", "/metrics", "/debug/server_info", "/v1/files", "/v1/batches", "/v1/usage"):
        await to.send("GET", path.replace("counter", "{model_id}"))
    await to.send("POST", "/v1/chat/completions/render", json={"messages": HI})
    for path in ("/v1/responses/input_tokens", "/v1/responses/compact"):
        await to.send("POST", path, json={"model": "counter", "input": "hi"})
    await to.send("POST", "/debug/profile")


async def send_to_responses(to: Recorder) -> None:
    streamed = await to.send("POST", "/v1/responses", json={"input": "hi", "background": True, "stream": True})
    to.ids["response_id"] = streamed.text.partition('"id":"')[2].partition('"')[0]
    response = "/v1/responses/{response_id}"
    await to.send("GET", response)
    await to.send("GET", response, params={"stream": True})
    await to.send("GET", f"{response}/input_items")
    await to.send("POST", f"{response}/cancel")
    await to.send("DELETE", response)


async def send_to_conversations(to: Recorder) -> None:
    await to.make("conversation_id", "/v1/conversations", json={})
    conversation = "/v1/conversations/{conversation_id}"
    added = await to.send("POST", f"{conversation}/items", json={"items": HI})
    to.ids["item_id"] = added.json()["data"][0]["id"]
    await to.send("GET", f"{conversation}/items")
    await to.send("POST", conversation, json={"metadata": {}})
    for path in (f"{conversation}/items/{{item_id}}", conversation):
        await to.send("GET", path)
        await to.send("DELETE", path)


async def send_to_states(to: Recorder) -> None:
    answer = await to.send("POST", "/generate", json={"token_ids": [4, 5], "max_tokens": 2})
    await to.make("state_id", "/v1/states", json={"request_id": answer.json()["id"]})
    state = "/v1/states/{state_id}"
    await to.send("GET", state)
    file = await to.send("GET", f"{state}/export")
    kind = {"content-type": file.headers["content-type"]}
    await to.send("POST", "/v1/states/import", content=file.content, headers=kind)
    await to.send("DELETE", state)


async def send_to_batches(to: Recorder) -> None:
    await to.make("file_id", "/v1/files", **UPLOAD)
    await to.make("batch_id", "/v1/batches", json={**BATCH, "input_file_id": to.ids["file_id"]})
    await to.send("GET", "/v1/batches/{batch_id}")
    await to.send("POST", "/v1/batches/{batch_id}/cancel")
    await to.make("file_id", "/v1/files", **UPLOAD)  # the other one is in use
    file = "/v1/files/{file_id}"
    await to.send("GET", file)
    await to.send("GET", f"{file}/content")
    await to.send("DELETE", file)


async def test_every_route_takes_and_sends_the_types_that_it_declares(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies have each declared type and no other, also on routes that need an admin key or a database."""
    monkeypatch.setattr(FakeEngine, "stats", EngineStats(slots=4, cache=CacheStats(budget=10**6)))
    monkeypatch.setattr("roost.server.features.native.feature._record", lambda seconds: b"")
    features = open_features(Opening(service, load_settings({"store": f"sqlite://{tmp_path / 'store.db'}"})))
    app = create_app(service, Access(admin_keys=ApiKeys(["root"])), features)
    async with client_of(app, headers={"authorization": "Bearer root"}) as client:
        to = Recorder(client)
        await send_to_fixed_paths(to)
        await send_to_responses(to)
        await send_to_conversations(to)
        await send_to_states(to)
        await send_to_batches(to)
    for feature in features:
        await feature.close()
    declared = {
        (path, method, name): set(part["content"])
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        for name, part in (("Request", operation.get("requestBody")), ("Response", operation["responses"]["200"]))
        if part
    }
    assert to.types == declared


def test_errors_are_described_as_they_are(description: dict[str, Any]) -> None:
    for operation in (each for path in description["paths"].values() for each in path.values()):
        assert "422" not in operation["responses"]
        assert "4XX" in operation["responses"]


async def test_an_error_of_models_has_the_shape_of_the_client(
    client: httpx.AsyncClient, description: dict[str, Any]
) -> None:
    (content,) = description["paths"]["/v1/models/{model_id}"]["get"]["responses"]["4XX"]["content"].values()
    for headers in ({}, {"anthropic-version": "2023-06-01"}):
        value = (await client.get("/v1/models/x", headers=headers)).json()
        check_value(description, "/v1/models/x", value, content["schema"])


async def test_references_resolve(description: dict[str, Any]) -> None:
    text = json.dumps(description)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= description["components"]["schemas"].keys()
