"""Requests of coding agents and the newest clients: unsupported parts are left out and reported."""

import json
import urllib.parse
from collections.abc import Callable
from typing import Any

import anthropic.types
import httpx
import pytest
from client_types import checked
from fake_engine import FakeEngine
from openai.types.responses import Response
from roost.server.errors.request_errors import WARNINGS_HEADER

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
FUNCTION = {
    "type": "function",
    "name": "shell",
    "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}},
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def ask(client: httpx.AsyncClient, path: str, **fields: Any) -> httpx.Response:
    base = {"input": "hi", "max_output_tokens": 3} if path == RESPONSES else {"messages": HI, "max_tokens": 3}
    response = await client.post(path, json=base | fields)
    assert response.status_code == 200, response.text
    return response


def warnings_of(response: httpx.Response) -> list[str]:
    header = response.headers.get(WARNINGS_HEADER, "")
    return [urllib.parse.unquote(each) for each in header.split(", ")] if header else []


@pytest.mark.parametrize(
    "kind", ["namespace", "web_search", "web_search_preview", "custom", "local_shell", "mcp", "new"]
)
async def test_tools_that_the_server_cannot_run_are_dropped(client: httpx.AsyncClient, kind: str) -> None:
    other = {"type": kind, "name": "x", "tools": [FUNCTION], "format": {"type": "text"}}
    response = await ask(client, RESPONSES, tools=[other, FUNCTION], tool_choice="auto")
    assert warnings_of(response) == [f"tools[0]: {kind}"]
    assert [tool.type for tool in checked(Response, response.text).tools] == ["function"]


async def test_some_of_a_responses_tools_may_be_allowed(client: httpx.AsyncClient) -> None:
    allowed = [{"type": "function", "name": "shell"}, {"type": "web_search"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    response = await ask(client, RESPONSES, tools=[FUNCTION], tool_choice=choice, max_output_tokens=100)
    (call,) = checked(Response, response.text).output
    assert call.type == "function_call"


async def test_reasoning_in_the_input_has_no_effect(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
    for items in ([*HI, reasoning, answer, *HI], [*HI, answer, *HI]):
        assert warnings_of(await ask(client, RESPONSES, input=items)) == []
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


async def test_items_of_other_tools_are_dropped(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }
    response = await ask(client, RESPONSES, input=[*HI, search])
    assert warnings_of(response) == ["input[1]: web_search_call"]
    await ask(client, RESPONSES, input=HI)
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


async def test_calls_of_custom_tools_are_calls(client: httpx.AsyncClient) -> None:
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin"}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"}
    assert warnings_of(await ask(client, RESPONSES, input=[*HI, call, output])) == []


async def test_a_refusal_is_text(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for part in ({"type": "refusal", "refusal": "no"}, {"type": "output_text", "text": "no"}):
        await ask(client, RESPONSES, input=[*HI, {"role": "assistant", "content": [part]}, *HI])
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


async def test_items_of_stored_responses_are_found_by_their_ids(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    first = (await ask(client, RESPONSES)).json()
    text = first["output"][0]["content"][0]["text"]
    await ask(client, RESPONSES, input=[*HI, {"type": "item_reference", "id": first["output"][0]["id"]}, *HI])
    await ask(client, RESPONSES, input=[*HI, {"role": "assistant", "content": text}, *HI])
    assert engine.requests[1].prompt_token_ids == engine.requests[2].prompt_token_ids
    called = (await ask(client, RESPONSES, tools=[FUNCTION], tool_choice="required", max_output_tokens=100)).json()
    (call,) = called["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "x"}
    await ask(client, RESPONSES, input=[*HI, {"type": "item_reference", "id": call["id"]}, output])


async def test_an_item_that_is_not_stored_is_named(client: httpx.AsyncClient) -> None:
    body = {"input": [{"type": "item_reference", "id": "msg_none"}]}
    response = await client.post(RESPONSES, json=body)
    assert response.status_code == 404
    assert "msg_none" in response.json()["error"]["message"]


THINKING = [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}]


@pytest.mark.parametrize("thinking", THINKING)
async def test_thinking_changes_nothing(client: httpx.AsyncClient, engine: FakeEngine, thinking: Any) -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "redacted_thinking", "data": "x"}]
    said = {"role": "assistant", "content": [*blocks, {"type": "text", "text": "a"}]}
    edits = {"edits": [{"type": "clear_thinking_20251015"}]}
    response = await ask(client, MESSAGES, messages=[*HI, said, *HI], thinking=thinking, context_management=edits)
    assert warnings_of(response) == []
    await ask(client, MESSAGES, messages=[*HI, {"role": "assistant", "content": "a"}, *HI])
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


async def test_an_answer_of_nothing_but_thinking_is_empty(client: httpx.AsyncClient) -> None:
    said = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}]}
    await ask(client, MESSAGES, messages=[*HI, said, *HI])


@pytest.mark.parametrize("field", ["output_config", "output_format"])
async def test_a_format_is_enforced_and_effort_ignored(client: httpx.AsyncClient, field: str) -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    config = {"format": wanted, "effort": "high"} if field == "output_config" else wanted
    got = checked(anthropic.types.Message, (await ask(client, MESSAGES, max_tokens=200, **{field: config})).text)
    (block,) = got.content
    assert block.type == "text"
    assert set(json.loads(block.text)) == {"n"}


async def test_tools_of_anthropics_own_are_dropped(client: httpx.AsyncClient) -> None:
    own = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "bash_20250124", "name": "bash"}]
    mine = {"name": "f", "input_schema": SCHEMA}
    response = await ask(client, MESSAGES, tools=[*own, mine])
    assert warnings_of(response) == ["tools[0]: web_search_20250305", "tools[1]: bash_20250124"]
    used = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    said = {"role": "assistant", "content": [used, {"type": "text", "text": "a"}]}
    response = await ask(client, MESSAGES, messages=[*HI, said, *HI])
    assert warnings_of(response) == ["messages[1]: server_tool_use"]


async def test_a_schema_needs_no_name(client: httpx.AsyncClient) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    body = {"messages": HI, "max_tokens": 200, "response_format": wanted}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    text = {"format": {"type": "json_schema", "schema": SCHEMA}}
    await ask(client, RESPONSES, text=text, max_output_tokens=200)


@pytest.mark.parametrize(
    ("path", "wrap", "most"),
    [
        ("/v1/chat/completions", lambda name: {"type": "function", "function": {"name": name}}, 64),
        (RESPONSES, lambda name: {"type": "function", "name": name}, 128),
        (MESSAGES, lambda name: {"name": name, "input_schema": {"type": "object"}}, 128),
    ],
)
async def test_names_of_tools_are_as_long_as_in_each_api(
    client: httpx.AsyncClient, path: str, wrap: Callable[[str], Any], most: int
) -> None:
    base: dict[str, Any] = {"input": "hi"} if path == RESPONSES else {"messages": HI, "max_tokens": 3}
    for length, status in ((most, 200), (most + 1, 400)):
        response = await client.post(path, json={**base, "tools": [wrap("n" * length)]})
        assert response.status_code == status
    assert f"{{1,{most}}}" in response.json()["error"]["message"]


async def test_a_call_with_a_long_name_is_made_and_sent_back(client: httpx.AsyncClient) -> None:
    name = "mcp__" + "n" * 123
    tool, choice = {"name": name, "input_schema": {"type": "object"}}, {"type": "tool", "name": name}
    said = (await ask(client, MESSAGES, tools=[tool], tool_choice=choice, max_tokens=300)).json()["content"]
    assert said[0]["name"] == name
    result = {"type": "tool_result", "tool_use_id": said[0]["id"], "content": "x"}
    history = [*HI, {"role": "assistant", "content": said}, {"role": "user", "content": [result]}]
    await ask(client, MESSAGES, tools=[tool], messages=history)


async def test_extras_of_clients_are_known(client: httpx.AsyncClient) -> None:
    metadata = {"x-codex-turn-metadata": "x"}
    assert warnings_of(await ask(client, RESPONSES, client_metadata=metadata)) == []
    tool = {"name": "f", "input_schema": SCHEMA, "input_examples": [{"n": 1}]}
    assert warnings_of(await ask(client, MESSAGES, tools=[tool], client_metadata=metadata, betas=["x"])) == []


DOCUMENT = {"type": "document", "title": "T", "context": "C", "citations": {"enabled": True}}
PLAIN = {"type": "text", "media_type": "text/plain", "data": "a\nb"}
TEXTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
FOUND = {"type": "search_result", "source": "https://a.example", "title": "T", "content": TEXTS}


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({**DOCUMENT, "source": PLAIN}, "T\n\nC\n\na\nb"),
        ({"type": "document", "source": PLAIN, "title": None}, "a\nb"),
        ({**DOCUMENT, "source": {"type": "content", "content": TEXTS}}, "T\n\nC\n\na\nb"),
        ({"type": "document", "source": {"type": "content", "content": "a"}}, "a"),
        (FOUND, "T\n\nhttps://a.example\n\na\nb"),
    ],
)
async def test_documents_and_search_results_are_read_as_text(
    client: httpx.AsyncClient, engine: FakeEngine, block: dict[str, Any], text: str
) -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]}
    for read in (block, {"type": "text", "text": text}):
        result = {"type": "tool_result", "tool_use_id": "c1", "content": [read]}
        asked = {"role": "user", "content": [read, {"type": "text", "text": "hi"}]}
        response = await ask(client, MESSAGES, messages=[asked, call, {"role": "user", "content": [result]}])
        assert warnings_of(response) == []
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


@pytest.mark.parametrize("source", [{"type": "base64", "media_type": "application/pdf", "data": ""}, {"type": "file"}])
async def test_documents_that_are_no_text_are_refused(client: httpx.AsyncClient, source: dict[str, str]) -> None:
    content = [{"type": "document", "source": source}]
    response = await client.post(MESSAGES, json={"messages": [{"role": "user", "content": content}], "max_tokens": 1})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message == f'messages[0].content[0].source.type must be "text", got "{source["type"]}"'


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file_1", "/v1/files/file_1/content"])
async def test_files_of_anthropic_are_refused_by_name(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"anthropic-version": "2023-06-01"})
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (404, "not_found_error")
    assert error["message"].startswith("/v1/files has no files of Anthropic's API")
