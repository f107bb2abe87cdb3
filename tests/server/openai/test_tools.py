"""Tools in the three APIs: how they get into a prompt, and what comes of an answer that calls them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic.types
import httpx
import pytest
from client_types import checked, events
from fake_engine import FakeEngine
from fake_server import client_of, make_service, served_model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from roost.server.app import create_app
from roost.server.constraints.tool_calls import call_text
from roost.server.text.chat_template import load_chat_format
from roost.server.text.tokenizer import Tokenizer

PLACE = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Tells the weather.", "parameters": PLACE}
TOOLS = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "now"}}]
RESPONSE_TOOLS = [{"type": "function", **FUNCTION, "strict": True}, {"type": "function", "name": "now"}]
ANTHROPIC_TOOLS = [{"name": "get_weather", "input_schema": PLACE}, {"name": "now", "input_schema": {"type": "object"}}]
HI = [{"role": "user", "content": "hi"}]
OURS = frozenset({"stop_reason"})

ARGUMENTS = '{"city": "Oslo"}'
OSLO = call_text("get_weather", ARGUMENTS)
BOTH = OSLO + "\n" + call_text("now", "{}")


def function(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def allowed_tools(mode: str, *names: str) -> dict[str, Any]:
    """OpenAI's way to let only some of the tools be called."""
    named = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}


@pytest.fixture
def say(engine: FakeEngine, tokenizer: Tokenizer) -> Any:
    """Has the engine say a text."""

    def say(text: str) -> None:
        engine.says = tokenizer.encode(text, control_tokens=False)

    return say


async def prompt_of(client: httpx.AsyncClient, **fields: Any) -> str:
    response = await client.post("/v1/chat/completions/render", json={"messages": HI, **fields})
    assert response.status_code == 200, response.text
    return response.json()["prompt"]


# --- prompts


async def test_tools_stand_behind_the_system_text_in_the_first_turn(client: httpx.AsyncClient) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    prompt = await prompt_of(client, messages=messages, tools=TOOLS)
    assert prompt.startswith("<bos><start_of_turn>user\nBe brief.\n\nYou can call these functions:\n")
    assert json.dumps({key: FUNCTION[key] for key in ("name", "description", "parameters")}) in prompt
    assert prompt.endswith("</tool_call>\n\nhi<end_of_turn>\n<start_of_turn>model\n")


async def test_tools_that_may_not_be_called_are_not_mentioned(client: httpx.AsyncClient) -> None:
    assert await prompt_of(client, tools=TOOLS, tool_choice="none") == await prompt_of(client)


async def test_all_apis_have_the_same_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    described = {"name": "now", "parameters": {"type": "object"}}
    tool, response_tool = {"type": "function", "function": described}, {"type": "function", **described}
    function = {"name": "now", "arguments": '{"a": 1}'}
    chat = [
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    items = [
        *HI,
        {"type": "function_call", "call_id": "c1", "id": "fc_1", "status": "completed", **function},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
    ]
    blocks = [
        *HI,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "now", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "noon"}]},
    ]
    anthropic_tool = {"name": "now", "input_schema": {"type": "object"}}
    for path, body in (
        ("/v1/chat/completions", {"messages": chat, "tools": [tool], "max_tokens": 1}),
        ("/v1/responses", {"input": items, "tools": [response_tool], "max_output_tokens": 1}),
        ("/v1/messages", {"messages": blocks, "tools": [anthropic_tool], "max_tokens": 1}),
    ):
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
    count = await client.post("/v1/messages/count_tokens", json={"messages": blocks, "tools": [anthropic_tool]})
    first, second, third = (request.prompt_token_ids for request in engine.requests)
    assert first == second == third
    assert count.json() == {"input_tokens": len(first)}


TEMPLATE = (
    "{% if tools %}{% for tool in tools %}[{{ tool.function.name }}: {{ tool.function.description }}]{% endfor %}"
    "{% endif %}{% for message in messages %}({{ message.role }}) {{ message.content }}\n{% endfor %}"
)


async def test_a_template_that_takes_tools_introduces_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    model = replace(served_model(tokenizer), chat_format=load_chat_format(tmp_path, tokenizer))
    async with client_of(create_app(make_service(FakeEngine(), model))) as client:
        assert await prompt_of(client, tools=TOOLS[:1]) == "<bos>[get_weather: Tells the weather.](user) hi\n"
        assert await prompt_of(client) == "<bos>(user) hi\n"
        function = {"name": "f", "description": "<end_of_turn>"}
        body = {"messages": HI, "tools": [{"type": "function", "function": function}]}
        response = await client.post("/v1/chat/completions", json=body)
    assert response.json()["error"]["param"] == "tools"
    assert "<end_of_turn>" in response.json()["error"]["message"]


# --- chat


async def chat(client: httpx.AsyncClient, **fields: Any) -> ChatCompletion:
    response = await client.post("/v1/chat/completions", json={"messages": HI, "tools": TOOLS, **fields})
    assert response.status_code == 200, response.text
    return checked(ChatCompletion, response.text, OURS)


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_calls_of_a_chat(client: httpx.AsyncClient, say: Any, choice: str) -> None:
    say(BOTH)
    (answer,) = (await chat(client, tool_choice=choice)).choices
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
    calls = [call for call in answer.message.tool_calls or () if call.type == "function"]
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", ARGUMENTS),
        ("now", "{}"),
    ]
    assert all(call.id.startswith("call_") for call in calls)


async def test_calls_of_a_streamed_chat(client: httpx.AsyncClient, say: Any) -> None:
    say(BOTH)
    body = {"messages": HI, "tools": TOOLS, "stream": True}
    *lines, done, _ = (await client.post("/v1/chat/completions", json=body)).text.split("\n\n")
    assert done == "data: [DONE]"
    got = [checked(ChatCompletionChunk, line.removeprefix("data: "), OURS).choices[0] for line in lines]
    pieces = [call for choice in got for call in choice.delta.tool_calls or ()]
    assert [(piece.index, piece.function and piece.function.name) for piece in pieces if piece.id] == [
        (0, "get_weather"),
        (1, "now"),
    ]
    for index, arguments in ((0, ARGUMENTS), (1, "{}")):
        mine = [piece.function.arguments or "" for piece in pieces if piece.index == index and piece.function]
        assert "".join(mine) == arguments
    assert got[-1].finish_reason == "tool_calls"
    assert not any(choice.delta.content for choice in got)


async def test_an_answer_in_words(client: httpx.AsyncClient, say: Any) -> None:
    say("a fine day")
    (answer,) = (await chat(client)).choices
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", "a fine day", None)


async def test_a_named_function_is_called_once(client: httpx.AsyncClient) -> None:
    """The engine would rather count."""
    (answer,) = (await chat(client, tool_choice={"type": "function", "function": {"name": "now"}})).choices
    (call,) = answer.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("now", "{}")


async def test_only_one_call_if_so_wanted(client: httpx.AsyncClient, say: Any) -> None:
    say(BOTH)
    (answer,) = (await chat(client, parallel_tool_calls=False)).choices
    assert len(answer.message.tool_calls or ()) == 1


async def test_a_call_that_is_cut_short(client: httpx.AsyncClient, engine: FakeEngine, say: Any) -> None:
    say(OSLO)
    (answer,) = (await chat(client, max_tokens=len(engine.says) - 16)).choices
    assert answer.finish_reason == "length"
    (call,) = answer.message.tool_calls or ()
    assert call.type == "function"
    assert ARGUMENTS.startswith(call.function.arguments)


async def test_a_format_is_for_the_text(client: httpx.AsyncClient, say: Any) -> None:
    for text, expected in ((OSLO, "tool_calls"), ('{"a": 1}', "stop")):
        say(text)
        (answer,) = (await chat(client, response_format={"type": "json_object"})).choices
        assert answer.finish_reason == expected


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "name"),
        ({"tools": [TOOLS[1]] * 2}, "tools", "several functions have the name "),
        ({"tools": [TOOLS[1]] * 129}, "tools", "128"),
        (
            {"tools": [function("f", {"uniqueItems": True, "not": {"pattern": "a"}}, strict=True)]},
            "tools",
            "keyword: uniqueItems, not",
        ),
        ({"tools": [function("f", {"type": "string"})], "tool_choice": "required"}, "tools", "parameters of f"),
        ({"tool_choice": "always"}, "tool_choice", "auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "allowed_tools is required"),
        ({"tool_choice": allowed_tools("auto", "g")}, "tool_choice", "'g'"),
        ({"tool_choice": allowed_tools("required")}, "tool_choice", "required needs a tool"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "required needs a tool"),
        ({"regex": "a"}, "regex", "JSON"),
        ({"min_tokens": 2}, "min_tokens", "tools"),
        ({"messages": [*HI, {"role": "tool", "content": "x", "tool_call_id": "c9"}]}, "messages", "c9"),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": [{"id": "c1"}]}]}, "messages", "tool_calls[0]"),
    ],
)
async def test_what_cannot_be_done_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str, named: str
) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": HI, "tools": TOOLS, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert named in error["message"]
    assert not engine.requests


async def test_only_allowed_tools_can_be_called(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The prompt has all of them, so that its cached prefix stays the same."""
    body = {"messages": HI, "tools": TOOLS, "max_tokens": 500}
    for choice in (allowed_tools("required", "now"), allowed_tools("auto", "now"), "auto"):
        response = await client.post("/v1/chat/completions", json={**body, "tool_choice": choice})
        assert response.status_code == 200, response.text
    called = (
        await client.post("/v1/chat/completions", json={**body, "tool_choice": allowed_tools("required", "now")})
    ).json()
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "now"
    assert len({tuple(request.prompt_token_ids) for request in engine.requests}) == 1


@pytest.mark.parametrize(
    ("parameters", "warnings"),
    [
        ({"type": "string"}, "tools.f%3A parameters"),
        ({"$ref": "http://elsewhere/schema"}, "tools.f%3A parameters"),
        ({"type": "any"}, "tools.f%3A parameters"),
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "tools.f%3A uniqueItems"),
        ({"properties": {"a": {"pattern": "["}}}, "tools%3A parameters"),
    ],
)
async def test_a_tool_that_is_never_forced_may_have_any_schema(
    client: httpx.AsyncClient, say: Any, parameters: dict[str, Any], warnings: str
) -> None:
    say(call_text("f", "{}"))
    tools = [function("f", parameters), TOOLS[0]]
    response = await client.post("/v1/chat/completions", json={"messages": HI, "tools": tools})
    assert response.status_code == 200, response.text
    assert response.headers["x-roost-warnings"] == warnings
    (call,) = response.json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "f"


# --- responses


async def respond(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    response = await client.post("/v1/responses", json={"input": "hi", "tools": RESPONSE_TOOLS, **fields})
    assert response.status_code == 200, response.text
    return response


async def test_calls_of_a_response(client: httpx.AsyncClient, engine: FakeEngine, say: Any) -> None:
    say(BOTH)
    first = checked(Response, (await respond(client)).text)
    calls = [item for item in first.output if item.type == "function_call"]
    assert [(call.name, call.arguments, call.status) for call in calls] == [
        ("get_weather", ARGUMENTS, "completed"),
        ("now", "{}", "completed"),
    ]
    assert len(first.output) == 2
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "x"} for call in calls]
    say("fine")
    second = checked(Response, (await respond(client, input=outputs, previous_response_id=first.id)).text)
    assert second.output_text == "fine"
    assert len(engine.requests[1].prompt_token_ids) > len(engine.requests[0].prompt_token_ids) + len(BOTH) // 4


async def test_calls_of_a_streamed_response(client: httpx.AsyncClient, say: Any) -> None:
    say(BOTH)
    got = events((await respond(client, stream=True, tool_choice="required")).text)
    parsed = [checked(ResponseStreamEvent, event, frozenset({"name"})) for _, event in got]  # documented only
    assert [event.sequence_number for event in parsed] == list(range(len(got)))
    names = [name for name, _ in got if not name.endswith("arguments.delta")]
    item = ["response.output_item.added", "response.function_call_arguments.done", "response.output_item.done"]
    assert names == ["response.created", "response.in_progress", *item, *item, "response.completed"]
    deltas = [event for name, event in got if name.endswith("arguments.delta")]
    assert "".join(event["delta"] for event in deltas if event["output_index"] == 0) == ARGUMENTS
    response = checked(Response, got[-1][1]["response"])
    done = [event["item"] for name, event in got if name == "response.output_item.done"]
    assert done == got[-1][1]["response"]["output"]
    assert {event["item_id"] for event in deltas} == {item.id for item in response.output}
    assert response.tool_choice == "required"
    assert len(response.tools) == 2


async def test_a_streamed_response_in_words(client: httpx.AsyncClient, say: Any) -> None:
    say("<tool or not")
    logprobs = {"include": ["message.output_text.logprobs"]}
    got = events((await respond(client, stream=True, **logprobs)).text)
    deltas = [event for name, event in got if name == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == "<tool or not"
    (done,) = [event for name, event in got if name == "response.output_text.done"]
    assert [each["token"] for event in deltas for each in event["logprobs"]] == [
        each["token"] for each in done["logprobs"]
    ]


async def test_a_response_names_a_function(client: httpx.AsyncClient) -> None:
    choice = {"type": "function", "name": "now"}
    (item,) = checked(Response, (await respond(client, tool_choice=choice)).text).output
    assert item.type == "function_call"
    assert (item.name, item.arguments) == ("now", "{}")


# --- Anthropic's messages


async def message(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"messages": HI, "tools": ANTHROPIC_TOOLS, "max_tokens": 500, **fields}
    response = await client.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("choice", ["auto", "any"])
async def test_calls_of_a_message(client: httpx.AsyncClient, say: Any, choice: str) -> None:
    say(BOTH)
    got = checked(anthropic.types.Message, (await message(client, tool_choice={"type": choice})).text)
    uses = [block for block in got.content if block.type == "tool_use"]
    assert [(block.name, block.input) for block in uses] == [("get_weather", {"city": "Oslo"}), ("now", {})]
    assert (got.stop_reason, len(got.content)) == ("tool_use", 2)


async def test_calls_of_a_streamed_message(client: httpx.AsyncClient, say: Any) -> None:
    say(BOTH)
    got = events((await message(client, stream=True)).text)
    for name, event in got:
        if name != "ping":
            checked(anthropic.types.RawMessageStreamEvent, event)
    names = [name for name, _ in got if name not in ("ping", "content_block_delta")]
    block = ["content_block_start", "content_block_stop"]
    assert names == ["message_start", *block, *block, "message_delta", "message_stop"]
    deltas = [event for name, event in got if name == "content_block_delta"]
    assert {event["delta"]["type"] for event in deltas} == {"input_json_delta"}
    assert "".join(event["delta"]["partial_json"] for event in deltas if event["index"] == 0) == ARGUMENTS
    assert got[-2][1]["delta"]["stop_reason"] == "tool_use"


async def test_a_message_names_a_tool_or_wants_none(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    got = checked(
        anthropic.types.Message, (await message(client, tool_choice={"type": "tool", "name": "get_weather"})).text
    )
    (block,) = got.content
    assert block.type == "tool_use"
    assert block.name == "get_weather"
    await message(client, tool_choice={"type": "none"}, max_tokens=1)
    assert engine.requests[-1].constraint is None


async def test_a_call_cut_short_has_no_input(client: httpx.AsyncClient, engine: FakeEngine, say: Any) -> None:
    say(OSLO)
    got = checked(anthropic.types.Message, (await message(client, max_tokens=len(engine.says) - 16)).text)
    (block,) = got.content
    assert block.type == "tool_use"
    assert (block.input, got.stop_reason) == ({}, "max_tokens")
