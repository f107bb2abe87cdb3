"""Budgets of memory, and how much of them a request takes and for how long."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import until
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.server.api.anthropic.schemas import MessagesBody
from roost.server.api.common.json_route import parse_json
from roost.server.api.openai.responses_schemas import ResponseBody
from roost.server.api.openai.schemas import ChatBody, CompletionBody, GenerateBody
from roost.server.app import create_app
from roost.server.errors import ApiError
from roost.server.generation.service import Service
from roost.server.middleware.api_keys import ApiKeys
from roost.server.middleware.auth import Access
from roost.server.tenancy.memory import ByteBudget, size_of

JSON = {"content-type": "application/json"}
ROOM = 1000
"""Bytes of the largest body here: 32 of them may be on their way in, and 256 times as much be held."""


NOISE = 8192
"""Bytes that a measurement is off by, whatever the size of the body: caches of libraries."""


@asynccontextmanager
async def shared(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A server with little room and two tenants."""
    app = create_app(service, Access(keys=ApiKeys(["greedy:g", "modest:m"])), max_body_bytes=ROOM, max_kept_bytes=0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        yield client


def key(name: str) -> dict[str, str]:
    return {**JSON, "x-api-key": name}


def test_one_tenant_may_fill_a_budget_alone() -> None:
    budget = ByteBudget(100)
    budget.take("", 60)
    budget.take("", 40)
    with pytest.raises(ApiError) as caught:
        budget.take("", 1)
    assert caught.value.status_code == 503
    budget.give_back("", 60)
    assert budget.num_bytes == 40


def test_no_tenant_takes_more_than_it_leaves_free() -> None:
    budget = ByteBudget(100, tenants=2)
    budget.take("greedy", 30)
    budget.take("greedy", 20)
    with pytest.raises(ApiError) as caught:
        budget.take("greedy", 1)
    assert caught.value.status_code == 429
    assert caught.value.headers is not None
    assert caught.value.headers["retry-after"] == "1"
    budget.take("modest", 25)
    with pytest.raises(ApiError):
        budget.take("modest", 1)
    assert budget.num_bytes == 75


def test_a_tenant_that_holds_nothing_may_take_what_fits() -> None:
    budget = ByteBudget(100, tenants=2)
    budget.take("greedy", 100)
    budget.give_back("greedy", 100)
    budget.take("modest", 100)
    with pytest.raises(ApiError) as caught:
        budget.take("greedy", 1)
    assert caught.value.status_code == 503


async def test_bodies_of_slow_answers_take_no_room_from_others(service: Service, engine: FakeEngine) -> None:
    """All room for bodies on their way in was held until the answers ended."""
    engine.gate.clear()
    body = b'{"prompt": "a", "stream": true, "max_tokens": 1}'.ljust(ROOM)
    async with shared(service) as client:
        slow = [asyncio.create_task(client.post("/v1/completions", content=body, headers=key("g"))) for _ in range(40)]
        await until(lambda: len(engine.running) == 40)
        other = asyncio.create_task(client.post("/v1/completions", content=body, headers=key("m")))
        await until(lambda: len(engine.running) == 41)
        engine.gate.set()
        assert {response.status_code for response in await asyncio.gather(*slow, other)} == {200}


async def test_one_tenants_trickling_bodies_leave_room_for_another(service: Service) -> None:
    """A tenant's bodies on their way in hold at most as much as they leave free."""
    arrive = asyncio.Event()

    async def trickle() -> AsyncIterator[bytes]:
        yield b'{"prompt": "a", '.ljust(ROOM - 100)
        await arrive.wait()
        yield b'"max_tokens": 1}'

    async def post(owner: str) -> httpx.Response:
        return await client.post("/v1/completions", content=trickle(), headers=key(owner))

    async with shared(service) as client:
        greedy = [asyncio.create_task(post("g")) for _ in range(30)]
        await until(lambda: any(task.done() for task in greedy))
        refused = [task for task in greedy if task.done()]
        assert {task.result().status_code for task in refused} == {429}
        whole = b'{"prompt": "a", "max_tokens": 1}'.ljust(ROOM)
        response = await client.post("/v1/completions", content=whole, headers=key("m"))
        assert response.status_code == 200
        arrive.set()
        statuses = [response.status_code for response in await asyncio.gather(*greedy)]
        assert statuses.count(200) == 17  # the last one that fits leaves less free than it holds
        assert statuses.count(429) == 13


async def test_what_is_made_of_bodies_is_bounded_until_answers_end(service: Service, engine: FakeEngine) -> None:
    engine.gate.clear()
    body = json.dumps({"prompt": [300] * 200, "max_tokens": 1}, separators=(",", ":")).encode()
    async with shared(service) as client:
        tasks: list[asyncio.Task[httpx.Response]] = []
        while not any(task.done() for task in tasks):
            tasks.append(asyncio.create_task(client.post("/v1/completions", content=body, headers=key("g"))))
            await until(lambda: len(engine.running) == len(tasks) or tasks[-1].done())
        assert tasks[-1].result().status_code == 429
        assert 5 < len(tasks) < 20  # a half of 256,000 bytes, and some 12,000 bytes each
        other = asyncio.create_task(client.post("/v1/completions", content=body, headers=key("m")))
        await until(lambda: len(engine.running) == len(tasks))
        engine.gate.set()
        assert (await other).status_code == 200
        await asyncio.gather(*tasks)
        assert (await client.post("/v1/completions", content=body, headers=key("g"))).status_code == 200


BODIES: dict[str, tuple[type, dict[str, Any]]] = {
    "text": (CompletionBody, {"prompt": "hello " * 5000}),
    "wide text": (CompletionBody, {"prompt": "hello \U0001f600" * 5000}),
    "texts": (CompletionBody, {"prompt": ["abcdefghi"] * 3000}),
    "empty texts": (CompletionBody, {"prompt": ["", "a"] * 3000}),
    "ids": (CompletionBody, {"prompt": [300] * 3000}),
    "small ids": (CompletionBody, {"prompt": [3] * 3000}),
    "lists of ids": (CompletionBody, {"prompt": [[300]] * 3000}),
    "huge numbers": (GenerateBody, {"token_ids": [10**400] * 5000}),
    "messages": (ChatBody, {"messages": [{"role": "user", "content": "abc"}] * 5000}),
    "parts": (ChatBody, {"messages": [{"role": "user", "content": [{"type": "text", "text": "abc"}] * 2000}]}),
    "calls": (
        ChatBody,
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "abc", "function": {"name": "f", "arguments": "{}"}}] * 3000,
                }
            ]
        },
    ),
    "tools": (
        ChatBody,
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": [{"b": [1.5]}] * 5000}}}],
        },
    ),
    "variables": (
        ChatBody,
        {
            "messages": [{"role": "user", "content": "a"}],
            "chat_template_kwargs": {f"{number:070}": number for number in range(5000)},
        },
    ),
    "input": (ResponseBody, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "abc"}]}] * 3000}),
    "blocks": (
        MessagesBody,
        {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": "abc"}]}] * 3000},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_size_of_a_body_is_what_it_takes(name: str) -> None:
    kind, content = BODIES[name]
    raw = json.dumps(content).encode()
    kind.model_validate(parse_json(raw))  # type: ignore[attr-defined]  # fills caches
    size, num_bytes = _measured(kind, raw)
    assert num_bytes - NOISE <= size <= 1.25 * num_bytes


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=80), inner, max_size=20),
    max_leaves=20,
)


@settings(max_examples=10, deadline=None)
@given(json_values)
def test_the_size_of_any_json_is_what_it_takes(value: Any) -> None:
    """Repeated until the objects that a program shares by chance do not count."""
    content = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": [value] * 50}}
    raw = json.dumps(content).encode()
    size, num_bytes = _measured(ChatBody, raw)
    assert 0.98 * num_bytes - NOISE <= size <= 1.25 * num_bytes + NOISE


def _measured(kind: Any, raw: bytes) -> tuple[int, int]:
    """Returns what is booked, and what it is by tracemalloc."""
    gc.disable()  # garbage of others that goes meanwhile would be taken off
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        body = kind.model_validate(parse_json(raw))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    return size_of(body), after - before


async def test_background_work_holds_its_memory_until_it_ends(service: Service, engine: FakeEngine) -> None:
    engine.gate.clear()
    body = json.dumps({"input": "a" * 900, "background": True}, separators=(",", ":")).encode()
    async with shared(service) as client:
        begun = []
        while (response := await client.post("/v1/responses", content=body, headers=key("g"))).status_code == 200:
            begun.append(response.json()["id"])
        assert response.status_code == 429
        assert len(begun) < 10
        engine.gate.set()
        await until(lambda: not service.background.is_busy)
        assert (await client.post("/v1/responses", content=body, headers=key("g"))).status_code == 200
        await until(lambda: not service.background.is_busy)


async def test_one_request_cannot_hold_more_than_there_is(service: Service) -> None:
    """It is told so, and not to try again."""
    app = create_app(service, max_body_bytes=20_000, max_kept_bytes=0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        body = {"prompt": [5] * 4000, "echo": True, "logprobs": 20, "max_tokens": 1}
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert "retry-after" not in response.headers


async def test_a_saved_state_in_front_of_many_prompts_is_counted(service: Service, engine: FakeEngine) -> None:
    """Each prompt has its own copy of the state's token ids."""
    app = create_app(service, max_body_bytes=1000, max_kept_bytes=0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        answer = await client.post("/generate", json={"token_ids": [5] * 150, "max_tokens": 1})
        saved = (await client.post("/v1/states", json={"request_id": answer.json()["id"]})).json()
        num_requests = len(engine.requests)
        body = {"prompt": [[5]] * 225, "from_state": saved["id"], "max_tokens": 1}
        content = json.dumps(body, separators=(",", ":")).encode()
        assert (await client.post("/v1/completions", content=content, headers=JSON)).status_code == 413
        assert len(engine.requests) == num_requests
