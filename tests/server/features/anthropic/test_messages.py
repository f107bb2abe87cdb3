"""Anthropic's `/v1/messages`: its messages, its events, its errors."""

import asyncio
import re
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import pytest
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from client_types import checked, events
from fake_engine import FakeEngine
from fake_server import limited, live, make_service, until
from roost.server.app import create_app
from roost.server.constraints.tool_calls import call_text
from roost.server.errors import kinds
from roost.server.features.anthropic.messages import anthropic_type
from roost.server.generation.service import Service
from roost.server.http import responses
from roost.server.http.auth import Access, ApiKeys
from roost.server.text.chat_format import Conversation, ConversationMessage
from roost.server.text.served_model import ServedModel
from unpacked_states import saved_state

HI = [{"role": "user", "content": "hi"}]
ENDLESS: dict[str, Any] = {"messages": HI, "max_tokens": 10**6, "ignore_eos": True}


async def create(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/messages", json={"messages": HI, "max_tokens": 3, **fields})


async def created(client: httpx.AsyncClient, **fields: Any) -> Message:
    response = await create(client, **fields)
    assert response.status_code == 200, response.text
    return checked(Message, response.text)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


async def test_a_whole_message(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/messages", json={"messages": HI, "max_tokens": 3}, headers={"anthropic-version": "2023-06-01"}
    )
    message = checked(Message, response.text)
    assert message.id.startswith("msg_")
    assert (text_of(message), message.stop_reason, message.stop_sequence) == ("ABC", "max_tokens", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (14, 3)
    assert response.headers["request-id"].startswith("req_")


async def test_a_message_goes_on_from_a_state(client: httpx.AsyncClient, service: Service, engine: FakeEngine) -> None:
    history = await service.prompts.chat(Conversation([ConversationMessage("user", "a")]))
    state = service.states.keep(saved_state([*history.token_ids, 4, 5]), "", 10**6)
    whole = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "ab"}, *HI]
    await created(client, messages=whole)
    await created(client, from_state=state.id)
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids
    counts = [
        (await client.post("/v1/messages/count_tokens", json=body)).json()
        for body in ({"messages": whole}, {"messages": HI, "from_state": state.id})
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
async def test_threads_are_refused_in_a_form_that_tool_runners_know(client: httpx.AsyncClient, thread: Any) -> None:
    response = await create(client, thread=thread)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert "thread: false" in error["message"]
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": []}
    assert "details" not in (await create(client, max_tokens=-1)).json()["error"]


async def test_tool_runner_goes_on_without_a_thread(service: Service, engine: FakeEngine, tokenizer: Any) -> None:
    """It sends `thread` with its first request, unless it is told not to."""
    calls, engine.says = [], tokenizer.encode(call_text("add", '{"a": 1, "b": 2}'), control_tokens=False)

    @anthropic.beta_async_tool
    async def add(a: int, b: int) -> str:
        """Adds numbers."""
        calls.append((a, b))
        engine.says = tokenizer.encode("It is 3.")
        return str(a + b)

    transport = httpx2.ASGITransport(create_app(service))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        anthropic.AsyncAnthropic(base_url="http://roost", api_key="none", http_client=http, max_retries=0) as api,
    ):
        runner = api.beta.messages.tool_runner(
            model=service.model.id, max_tokens=200, messages=[{"role": "user", "content": "1 + 2?"}], tools=[add]
        )
        last = await runner.until_done()
    assert calls == [(1, 2)]
    assert text_of(last) == "It is 3."
    assert len(engine.requests) == 2


async def test_why_it_stopped(client: httpx.AsyncClient) -> None:
    message = await created(client, max_tokens=9, stop_sequences=["xx", "EF"])
    assert (text_of(message), message.stop_reason, message.stop_sequence) == ("ABCD", "stop_sequence", "EF")
    assert (await created(client, max_tokens=10**6)).stop_reason == "end_turn"


async def test_the_events_of_a_stream(client: httpx.AsyncClient) -> None:
    got = events((await create(client, stream=True)).text)
    for name, event in got:
        if name != "ping":
            checked(RawMessageStreamEvent, event)
    assert [name for name, _ in got] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert "".join(event["delta"]["text"] for name, event in got if name == "content_block_delta") == "ABC"
    end = got[-2][1]
    assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (14, 3)


async def test_a_silent_stream_pings(engine: FakeEngine, model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "FIRST_TOKEN_TIMEOUT_S", 0.1)
    engine.gate.clear()
    async with live(make_service(engine, model, keep_alive_s=0.02)) as client:
        body = {"messages": HI, "max_tokens": 3, "stream": True}
        async with client.stream("POST", "/v1/messages", json=body) as response:
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if text.count("event: ping") > 3:
                    engine.gate.set()
    names = [name for name, _ in events(text)]
    assert names.count("ping") > 3
    assert names[-1] == "message_stop"


@pytest.mark.parametrize(
    "system", ["be short", [{"type": "text", "text": "be short", "cache_control": {"type": "ephemeral"}}]]
)
async def test_a_system_text_may_be_blocks(client: httpx.AsyncClient, engine: FakeEngine, system: Any) -> None:
    blocks = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    await created(client, system=system, messages=blocks)
    chat = [{"role": "system", "content": "be short"}, *HI]
    await client.post("/v1/chat/completions", json={"messages": chat, "max_tokens": 1})
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


async def test_an_answer_that_is_begun_is_gone_on_with(client: httpx.AsyncClient) -> None:
    message = await created(client, messages=[*HI, {"role": "assistant", "content": "a"}])
    assert text_of(message) == "bcd"


async def test_tokens_are_counted_as_they_will_be_read(client: httpx.AsyncClient) -> None:
    for messages in (HI, [*HI, {"role": "assistant", "content": "a"}]):
        fields = {"messages": messages, "system": "be short"}
        response = await client.post("/v1/messages/count_tokens", json=fields)
        count = checked(MessageTokensCount, response.text).input_tokens
        assert count == (await created(client, **fields)).usage.input_tokens


@pytest.mark.parametrize(
    ("fields", "status", "kind", "named"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
        ({"temperature": 1.5}, 400, "invalid_request_error", "temperature"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request_error", "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
            'messages[0].content[0].type must be "text", got "image"',
        ),
        (
            {"tools": [{"type": "bash_20250124", "name": "b"}], "tool_choice": {"type": "tool", "name": "b"}},
            400,
            "invalid_request_error",
            "tools has no function 'b'",
        ),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
        ({"mcp_servers": [{"url": "x"}]}, 400, "invalid_request_error", "mcp_servers"),
        ({"output_config": {"format": {"type": "regex"}}}, 400, "invalid_request_error", "output_config.format.type"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "stop_sequences"),
        ({"model": "claude"}, 404, "not_found_error", "claude"),
    ],
)
async def test_errors_have_anthropics_shape(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, kind: str, named: str
) -> None:
    response = await create(client, **fields)
    assert response.status_code == status, response.text
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert named in body["error"]["message"]
    assert body["request_id"] == response.headers["request-id"]


VERSION = {"anthropic-version": "2023-06-01"}


async def test_errors_of_the_outer_layers_have_it_too(service: Service, engine: FakeEngine) -> None:
    app = create_app(limited(service, 100), Access(ApiKeys(["sesame"])))
    key = {"x-api-key": "sesame"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        answers = [
            ("authentication_error", await create(client)),
            ("request_too_large", await client.post("/v1/messages", json={"x": "a" * 100}, headers=key)),
            ("not_found_error", await client.post("/v1/messages/batches", headers=key)),
            ("invalid_request_error", await client.get("/v1/messages", headers=key)),
            *[
                (kind, await client.request(method, path, headers=headers | VERSION))
                for kind, method, path, headers in (
                    ("authentication_error", "GET", "/v1/models", {}),
                    ("not_found_error", "GET", "/v1/models/claude", key),
                    ("not_found_error", "POST", "/v1/complete", key),
                    ("not_found_error", "GET", "/v1/", key),
                    ("invalid_request_error", "POST", "/v1/chat/completions", key),
                )
            ],
        ]
        engine.capacity = 0
        body = {"messages": HI, "max_tokens": 3}
        answers.append(("rate_limit_error", await client.post("/v1/messages", json=body, headers=key)))
        engine.failure = RuntimeError("secret")
        answers.append(("overloaded_error", await client.post("/v1/messages", json=body, headers=key)))
    for kind, response in answers:
        assert response.json()["error"]["type"] == kind, response.text
        assert "secret" not in response.text


async def test_a_failure_in_the_middle_is_an_error_event(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.dies_after = 2
    name, event = events((await create(client, stream=True)).text)[-1]
    assert (name, event["error"]["type"]) == ("error", "overloaded_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_slot(service: Service, engine: FakeEngine, stream: bool) -> None:
    async with live(service) as client:
        request = asyncio.create_task(client.post("/v1/messages", json={**ENDLESS, "stream": stream}))
        await until(lambda: engine.running)
        request.cancel()
        await until(lambda: not engine.running)


async def test_a_stream_can_be_aborted(service: Service, engine: FakeEngine) -> None:
    body = {**ENDLESS, "stream": True}
    headers = {"x-request-id": "mine"}
    async with live(service) as client, client.stream("POST", "/v1/messages", json=body, headers=headers) as stream:
        await until(lambda: engine.running)
        assert (await client.post("/abort_request", json={"request_id": "mine"})).json() == {"aborted": 1}
        text = "".join([part async for part in stream.aiter_text()])
    name, event = events(text)[-1]
    assert (name, event["error"]["message"]) == ("error", "the request was aborted")


def test_the_page_of_errors_has_the_type_of_each_status() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs/reference/errors.md").read_text()
    statuses = {kind.status for kind in vars(kinds).values() if isinstance(kind, kinds.ErrorKind)}
    types = [(str(status), anthropic_type(status)) for status in sorted(statuses)]
    assert re.findall(r"^\| (\d{3}) \| `(\w+)` \|$", page, re.MULTILINE) == types
