"""Any order of roles in all APIs, and the one prompt that it becomes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from chat_templates import GEMMA_TEMPLATE
from fake_engine import FakeEngine
from fake_server import client_of, make_service, served_model
from roost.server.app import create_app
from roost.server.constraints.tool_calls import call_text
from roost.server.text.chat_template import load_chat_format
from roost.server.text.tokenizer import Tokenizer

HEADER = "<start_of_turn>model\n"


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


S, T = message("system", "S"), message("developer", "T")
U, V = message("user", "U"), message("user", "V")
A, B = message("assistant", "A"), message("assistant", "B")


def prompt_of(*turns: str) -> str:
    """Gemma's, of turns that alternate, for another answer."""
    roles = ("user", "model") * len(turns)
    closed = (f"<start_of_turn>{role}\n{turn}<end_of_turn>\n" for role, turn in zip(roles, turns, strict=False))
    return "<bos>" + "".join(closed) + HEADER


ORDERS = [
    pytest.param([U, A], prompt_of("U", "A"), id="the assistant is last"),
    pytest.param([S], prompt_of("S"), id="only a system text"),
    pytest.param([S, T], prompt_of("S\n\nT"), id="only system texts"),
    pytest.param([A, U], prompt_of("", "A", "U"), id="the assistant's greeting"),
    pytest.param([A], prompt_of("", "A"), id="only a greeting"),
    pytest.param([S, A, U], prompt_of("S", "A", "U"), id="a greeting behind a system text"),
    pytest.param([U, V, A, B, U], prompt_of("U\n\nV", "A\n\nB", "U"), id="several of a role"),
    pytest.param([S, U, A, T, V], prompt_of("S\n\nU", "A", "T\n\nV"), id="a late system text"),
    pytest.param([U, A, S], prompt_of("U", "A", "S"), id="a system text at the end"),
    pytest.param([U, S, V], prompt_of("U\n\nS\n\nV"), id="a system text between a user's"),
    pytest.param([U, A, S, B], prompt_of("U", "A", "S", "B"), id="a system text between the assistant's"),
]


@pytest.mark.parametrize(("messages", "prompt"), ORDERS)
async def test_orders_of_roles_have_one_prompt_in_all_apis_of_openai(
    client: httpx.AsyncClient, engine: FakeEngine, messages: list[dict[str, str]], prompt: str
) -> None:
    rendered = await client.post("/v1/chat/completions/render", json={"messages": messages})
    assert rendered.json()["prompt"] == prompt
    token_ids = rendered.json()["token_ids"]
    assert (await client.post("/tokenize", json={"messages": messages})).json()["tokens"] == token_ids
    bodies = [
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 1}),
        ("/v1/responses", {"input": messages, "max_output_tokens": 1}),
    ]
    if messages[0] is S and len(messages) > 1:
        body = {"instructions": "S", "input": messages[1:], "max_output_tokens": 1}
        bodies.append(("/v1/responses", body))
    for path, body in bodies:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
    assert [list(request.prompt_token_ids) for request in engine.requests] == [token_ids] * len(bodies)


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"messages": [A, U]}, prompt_of("", "A", "U")),
        ({"messages": [U, V], "system": "S"}, prompt_of("S\n\nU\n\nV")),
        ({"messages": [A, U], "system": "S"}, prompt_of("S", "A", "U")),
        ({"messages": [U, A]}, prompt_of("U") + "A"),
        ({"messages": [A]}, prompt_of("") + "A"),
        ({"messages": [A, B], "system": "S"}, prompt_of("S") + "A\n\nB"),
    ],
)
async def test_a_message_of_the_assistant_at_the_end_is_continued_in_anthropics_api(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, fields: dict[str, Any], prompt: str
) -> None:
    response = await client.post("/v1/messages", json={**fields, "max_tokens": 1})
    assert response.status_code == 200, response.text
    (request,) = engine.requests
    assert list(request.prompt_token_ids) == tokenizer.encode(prompt)
    count = await client.post("/v1/messages/count_tokens", json=fields)
    assert count.json() == {"input_tokens": len(request.prompt_token_ids)}


async def test_a_response_may_go_on_with_the_assistants_words(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The stored answer and the new message are one turn."""
    first = (await client.post("/v1/responses", json={"input": [S], "max_output_tokens": 1})).json()
    body = {"input": [A], "previous_response_id": first["id"], "max_output_tokens": 1}
    assert (await client.post("/v1/responses", json=body)).status_code == 200
    text = first["output"][0]["content"][0]["text"]
    rendered = await client.post("/v1/chat/completions/render", json={"messages": [S, message("assistant", text), A]})
    assert list(engine.requests[-1].prompt_token_ids) == rendered.json()["token_ids"]


# --- tools


def calls(*ids: str) -> dict[str, Any]:
    function = {"name": "now", "arguments": "{}"}
    return {"role": "assistant", "tool_calls": [{"id": each, "type": "function", "function": function} for each in ids]}


def result(call_id: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call_id, "content": call_id}


CALL = call_text("now", "{}")
RESULTS = {call_id: f"<tool_response>\n{call_id}\n</tool_response>" for call_id in ("c1", "c2")}


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([U, calls("c1"), V, result("c1")], ["U", CALL, f"V\n\n{RESULTS['c1']}"]),
        (
            [U, calls("c1", "c2"), result("c2"), result("c1")],
            ["U", f"{CALL}\n{CALL}", f"{RESULTS['c2']}\n\n{RESULTS['c1']}"],
        ),
        (
            [U, calls("c1"), calls("c2"), result("c1"), S, result("c2"), V],
            ["U", f"{CALL}\n\n{CALL}", f"{RESULTS['c1']}\n\nS\n\n{RESULTS['c2']}\n\nV"],
        ),
        (
            [U, calls("c1", "c2"), result("c1"), A, result("c2"), B],
            ["U", f"{CALL}\n{CALL}", RESULTS["c1"], "A", RESULTS["c2"], "B"],
        ),
        ([calls("c1"), result("c1")], ["", CALL, RESULTS["c1"]]),
        ([U, calls("c1")], ["U", CALL]),
    ],
)
async def test_calls_and_results_come_in_any_order(
    client: httpx.AsyncClient, messages: list[dict[str, Any]], turns: list[str]
) -> None:
    rendered = await client.post("/v1/chat/completions/render", json={"messages": messages})
    assert rendered.json()["prompt"] == prompt_of(*turns)


@pytest.mark.parametrize("messages", [[result("c1")], [U, result("c1"), calls("c1")], [U, calls("c1"), result("c2")]])
async def test_a_result_needs_its_call_before_it(client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
    assert messages[1 if messages[0] is U else 0].get("tool_call_id", "c2") in response.json()["error"]["message"]


@pytest.mark.parametrize("messages", [[A, U], [S], [S, A, U], [U, A]])
async def test_tools_are_introduced_in_the_first_turn_of_any_order(
    client: httpx.AsyncClient, messages: list[dict[str, str]]
) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    body = {"messages": messages, "tools": tools}
    prompt: str = (await client.post("/v1/chat/completions/render", json=body)).json()["prompt"]
    first, second, *_ = prompt.removeprefix("<bos>").split("<end_of_turn>\n")
    introduction = first.removeprefix("<start_of_turn>user\n").removeprefix("S\n\n")
    assert introduction.startswith("You can call these functions:\n")
    assert second == HEADER + ("A" if A in messages else "")


# --- a checkpoint's own template


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [U, A]}, "messages"),
        ("/v1/responses", {"input": [U, A]}, "input"),
        ("/tokenize", {"messages": [U, A]}, "messages"),
        ("/v1/chat/completions/render", {"messages": [U, A]}, "messages"),
    ],
)
async def test_what_a_template_refuses_is_an_error_in_its_words(
    tokenizer: Tokenizer, tmp_path: Path, path: str, body: dict[str, Any], param: str
) -> None:
    refusing = (
        "{% if messages[-1].role == 'assistant' and add_generation_prompt %}"
        "{{ raise_exception('Expected last role user, got assistant') }}{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(refusing + GEMMA_TEMPLATE)
    model = replace(served_model(tokenizer), chat_format=load_chat_format(tmp_path, tokenizer))
    async with client_of(create_app(make_service(FakeEngine(), model))) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"] == (
        "the checkpoint's chat template refuses these messages: Expected last role user, got assistant"
    )
