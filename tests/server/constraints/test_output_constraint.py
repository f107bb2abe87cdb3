"""Structured output in all its spellings, through HTTP. The engine counts, or takes the first token that is allowed."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_types import checked, events
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, client_of, live, make_service, served_model, until
from openai.types.responses import Response, ResponseStreamEvent
from roost.server.app import create_app
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.constraints.grammar_process import Grammar
from roost.server.constraints.grammar_spec import GrammarError, GrammarSpec
from roost.server.constraints.schema_preparation import prepare
from roost.server.generation.service import Service
from roost.server.text.served_model import ServedModel
from roost.server.text.tokenizer import TokenIdsOnly

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
ANSWERS = ('{"ok": true}', '{"ok": false}')

PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "a", "max_tokens": 100},
}
CONSTRAINTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"response_format": FORMAT}, ANSWERS),
    ({"structured_outputs": {"json": SCHEMA}}, ANSWERS),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, ANSWERS),
    ({"structured_outputs": {"regex": "[x]{3}"}}, ("xxx",)),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, ("yes", "no")),
    ({"structured_outputs": {"grammar": 'start: "a" "b"'}}, ("ab",)),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, ANSWERS),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, ANSWERS),
    ({"response_format": {"type": "json_object", "schema": json.dumps(SCHEMA)}}, ANSWERS),
    ({"json_schema": SCHEMA}, ANSWERS),
    ({"json_schema": json.dumps(SCHEMA)}, ANSWERS),
    ({"grammar": 'root ::= "a" "b"'}, ("ab",)),
    ({"regex": "[x]{3}"}, ("xxx",)),
    ({"ebnf": 'root ::= "a" "b"'}, ("ab",)),
]
A_OBJECT = {"type": "object", "required": ["a"]}
OVERLAPPING = {"oneOf": [{"type": "integer"}, {"type": "number"}]}


def strictly(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def loosely(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def text_of(client: httpx.AsyncClient, path: str, **fields: Any) -> str:
    response = await client.post(path, json={**PATHS[path], **fields})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize(("fields", "answers"), CONSTRAINTS)
async def test_every_spelling(client: httpx.AsyncClient, fields: dict[str, Any], answers: tuple[str]) -> None:
    assert await text_of(client, "/v1/completions", **fields) in answers


async def test_any_object(client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Any) -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        engine.says = tokenizer.encode('{"a": [1, "b"]}')
        assert await text_of(client, "/v1/chat/completions", **fields) == '{"a": [1, "b"]}'


MOOD = {"type": "object", "properties": {"mood": {"enum": ["glad", "sad"]}}}
ALL_PATHS: dict[str, dict[str, Any]] = {
    **PATHS,
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "/generate": {"token_ids": [4], "max_tokens": 100},
}
FORCED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": MOOD}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
}
CLOSED: list[tuple[str, dict[str, Any]]] = [
    *(("/v1/completions", {"response_format": how(MOOD)}) for how in (strictly, loosely)),
    ("/v1/completions", {"response_format": {"type": "json_schema", "schema": MOOD}}),
    ("/v1/completions", {"response_format": {"type": "json_object", "schema": MOOD}}),
    ("/v1/completions", {"structured_outputs": {"json": MOOD}}),
    ("/v1/completions", {"structured_outputs": {"json": json.dumps(MOOD)}}),
    ("/v1/completions", {"json_schema": MOOD}),
    ("/v1/chat/completions", FORCED),
    ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "mood", "schema": MOOD}}}),
    ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": MOOD}}}),
    ("/generate", {"structured_outputs": {"json": MOOD}}),
]


@pytest.mark.parametrize(("path", "fields"), CLOSED)
async def test_an_objects_other_keys_are_not_allowed(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Any, path: str, fields: dict[str, Any]
) -> None:
    """Models would add keys, and the program that calls f(**arguments) would fail."""
    before = '<tool_call>\n{"name": "f", "arguments": ' if "tools" in fields else ""
    engine.says = tokenizer.encode(before + '{"mood": "sad", "another": 1}')
    response = await client.post(path, json={**ALL_PATHS[path], **fields})
    assert response.status_code == 200, response.text
    assert "x-roost-warnings" not in response.headers
    (given,) = engine.given.values()
    text = tokenizer.decode([token_id for token_id in given if token_id not in engine.requests[0].params.end_token_ids])
    assert text.removeprefix(before).removesuffix("}\n</tool_call>") == '{"mood": "sad"}'


@pytest.mark.parametrize(
    ("fields", "warnings"),
    [
        ({"response_format": loosely({"type": "integer", "not": {"multipleOf": 5}})}, "response_format%3A not"),
        ({"json_schema": {"type": "array", "maxItems": 2, "uniqueItems": True}}, "json_schema%3A uniqueItems"),
        ({"json_schema": {**OVERLAPPING, "maximum": 9, "minimum": 0}}, "json_schema%3A oneOf"),
    ],
)
async def test_what_is_not_enforced_is_reported(
    client: httpx.AsyncClient, fields: dict[str, Any], warnings: str
) -> None:
    response = await client.post("/v1/completions", json={**PATHS["/v1/completions"], **fields})
    assert response.status_code == 200, response.text
    assert response.headers["x-roost-warnings"] == warnings


BOUNDED = [json.loads(line) for line in (Path(__file__).parent / "bounds/schemas.jsonl").read_text().splitlines()]
STRICT: dict[str, Callable[[Any], dict[str, Any]]] = {
    "/v1/chat/completions": lambda schema: {"response_format": strictly(schema)},
    "/v1/responses": lambda schema: {
        "text": {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    },
    "/v1/messages": lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
}


@pytest.mark.parametrize("path", STRICT)
async def test_bounds_of_other_libraries_are_enforced_or_reported(client: httpx.AsyncClient, path: str) -> None:
    """`bounds` has the programs that made the schemas. The engine's answers are the first in the order of bytes."""
    for schema in (case["schema"] for case in BOUNDED):
        limit = {"max_output_tokens" if path == "/v1/responses" else "max_tokens": 20}
        response = await client.post(path, json={**ALL_PATHS[path], **limit, **STRICT[path](schema)})
        assert response.status_code == 200, (schema, response.text)
        reported = response.headers.get("x-roost-warnings", "")
        widened = {*prepare(schema).widened}
        assert {warning.rpartition(" ")[2] for warning in reported.split(",") if warning} == widened, schema


async def test_empty_grammars_ask_for_nothing(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """llama.cpp's page sends them with every request."""
    body = {**PATHS["/v1/chat/completions"], "max_tokens": 2, "grammar": "", "json_schema": {}, "regex": ""}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert engine.requests[0].constraint is None


async def test_plain_text_is_not_constrained(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await text_of(client, "/v1/chat/completions", response_format={"type": "text"})
    assert engine.requests[0].constraint is None


async def test_each_choice_has_a_constraint_of_its_own(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {**PATHS["/v1/chat/completions"], "n": 3, "response_format": FORMAT, "logprobs": True}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    assert len({choice["message"]["content"] for choice in answer["choices"]} & set(ANSWERS)) == 1
    assert len({id(request.constraint) for request in engine.requests}) == 3
    assert all(choice["logprobs"]["content"] for choice in answer["choices"])


async def test_it_streams_and_stops(client: httpx.AsyncClient) -> None:
    body = {**PATHS["/v1/chat/completions"], "stream": True, "response_format": FORMAT, "stop": ":"}
    lines = (await client.post("/v1/chat/completions", json=body)).text.split("\n\n")[:-2]
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == '{"ok"'
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_have_a_format_of_their_own(client: httpx.AsyncClient, stream: bool) -> None:
    text = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    got = await client.post("/v1/responses", json={"input": "hi", "text": text, "stream": stream})
    if stream:
        for _, event in events(got.text):
            checked(ResponseStreamEvent, event)
        response = checked(Response, events(got.text)[-1][1]["response"])
    else:
        response = checked(Response, got.text)
    assert response.output_text in ANSWERS
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "type"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"json_schema": {"not": {}}}, "json_schema", "no text can satisfy it"),
        ({"json_schema": {"properties": {"a": {"$ref": "#"}}, **A_OBJECT}}, "json_schema", "no text can satisfy it"),
        ({"response_format": strictly({"not": {"pattern": "a"}})}, "response_format", "keyword: not"),
        ({"response_format": strictly({"uniqueItems": True})}, "response_format", "keyword: uniqueItems"),
        ({"response_format": strictly(OVERLAPPING)}, "response_format", "oneOf"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "json_schema", "has no target"),
        ({"grammar": 'root ::= "a"', "regex": "a"}, "grammar", "exclude each other"),
        ({"json_schema": SCHEMA, "response_format": FORMAT}, "json_schema", "exclude each other"),
        ({"json_schema": "{"}, "json_schema", "JSON"),
        ({"json_schema": "[]"}, "json_schema", "object"),
        ({"json_schema": 5}, "json_schema", "object"),
        ({"regex": "("}, "regex", "unclosed group"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "1"),
        ({"structured_outputs": {"choice": [5]}}, "structured_outputs", "[0]"),
        ({"grammar": "start: x"}, "grammar", '"x"'),
        ({"structured_outputs": {}}, "structured_outputs", "one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "only one of"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "structural_tag"),
        ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs", "no text can satisfy it"),
        ({"json_schema": SCHEMA, "ebnf": "a"}, "ebnf", "json_schema"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex", "response_format"),
        ({"regex": "a", "ignore_eos": True, "max_tokens": 5}, "ignore_eos", "regex"),
        ({"regex": "a", "min_tokens": 1}, "min_tokens", "regex"),
    ],
)
async def test_what_cannot_be_done_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, named: str
) -> None:
    response = await client.post("/v1/completions", json={**PATHS["/v1/completions"], **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert named in error["message"]
    assert "\n" not in error["message"]
    assert not engine.requests


async def test_a_grammar_that_fails_on_the_way(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.constraint_error = "the grammar cannot be followed any further"
    body = {**PATHS["/v1/chat/completions"], "response_format": FORMAT}
    whole = await client.post("/v1/chat/completions", json=body)
    assert (whole.status_code, whole.json()["error"]["code"]) == (400, "constraint_failed")
    last = (await client.post("/v1/chat/completions", json={**body, "stream": True})).text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"] == whole.json()["error"]


async def test_a_model_without_a_tokenizer_cannot_do_it(engine: FakeEngine) -> None:
    async with client_of(create_app(make_service(engine, served_model(TokenIdsOnly(VOCAB_SIZE))))) as client:
        response = await client.post("/v1/completions", json={"prompt": [4], "regex": "a"})
    assert response.status_code == 400
    assert "no tokenizer" in response.json()["error"]["message"]


class Bench:
    """A compiler whose compilations wait until they are released, and then fail."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Event()

    def __call__(self, spec: GrammarSpec) -> Grammar:
        self.begun.append(spec.source)
        assert self.may_end.wait(120)
        raise GrammarError("no")


@asynccontextmanager
async def with_grammars(
    engine: FakeEngine, model: ServedModel, bench: Bench, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """A client of a server whose grammars are compiled elsewhere, and the server."""
    grammars = GrammarCompiler(model.tokenizer, model.end_token_ids, compile_=bench, **options)
    service = replace(make_service(engine, model), grammars=grammars)
    async with live(service) as client:
        try:
            yield client, service
        finally:
            bench.may_end.set()


def posts(client: httpx.AsyncClient, count: int) -> list["asyncio.Task[httpx.Response]"]:
    bodies = [{"prompt": "a", "regex": f"a{index}"} for index in range(count)]
    return [asyncio.create_task(client.post("/v1/completions", json=body)) for body in bodies]


async def test_waiting_for_other_grammars_is_a_503(engine: FakeEngine, model: ServedModel) -> None:
    bench = Bench()
    async with with_grammars(engine, model, bench, wait_s=0.0) as (client, _):
        slow = posts(client, 2)
        await until(lambda: len(bench.begun) == 2)
        response = await client.post("/v1/completions", json={"prompt": "a", "regex": "x"})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "overloaded"
        assert response.json()["error"]["message"].startswith("regex: ")
        assert int(response.headers["retry-after"]) >= 1
        bench.may_end.set()
        assert [(await each).status_code for each in slow] == [400, 400]


async def test_nothing_is_compiled_for_clients_that_hang_up(engine: FakeEngine, model: ServedModel) -> None:
    bench = Bench()
    async with with_grammars(engine, model, bench) as (client, service):
        requests = posts(client, 16)
        await until(lambda: len(bench.begun) == 2)
        for each in requests:
            each.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await until(lambda: service.open_requests.count == 0)
        bench.may_end.set()
        response = await client.post("/v1/completions", json={"prompt": "a", "regex": "x"})
        assert response.status_code == 400
        assert len(bench.begun) == 3
