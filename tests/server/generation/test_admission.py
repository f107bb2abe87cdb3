"""Memory budgets, and the bytes that requests hold of them."""

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
from fake_server import client_of, limited, until
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.server.app import create_app
from roost.server.errors.request_errors import ApiError
from roost.server.features.anthropic.schemas import MessagesBody
from roost.server.features.native.generate import GenerateBody
from roost.server.features.responses.body import ResponseBody
from roost.server.generation.admission import (
    MAX_OVERTAKEN,
    Admissions,
    ByteBudget,
    PreemptibleAdmission,
    size_of,
)
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.openai.completions import ChatBody, CompletionBody
from roost.server.schemas.json_limits import decode_json
from roost.server.tenants import tenant

JSON = {"content-type": "application/json"}
ROOM = 1000
"""Maximum bytes of a body here. The budgets are 32 times that for bodies and 256 times that for requests."""

NOISE = 8192
"""Bytes of libraries' caches that a measurement includes, whatever the size of the body."""


@asynccontextmanager
async def shared(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a server with small budgets and two tenants."""
    async with client_of(
        create_app(limited(service, ROOM, tenants=2), Access(keys=ApiKeys(["greedy:g", "modest:m"])))
    ) as client:
        yield client


def key(name: str) -> dict[str, str]:
    return {**JSON, "x-api-key": name}


def test_single_tenant_may_fill_a_budget() -> None:
    budget = ByteBudget(100)
    budget.reserve("", 60)
    budget.reserve("", 40)
    with pytest.raises(ApiError) as caught:
        budget.reserve("", 1)
    assert caught.value.status_code == 503
    budget.release("", 60)
    assert budget.num_bytes == 40


def test_tenant_holds_at_most_as_much_as_it_leaves_free() -> None:
    budget = ByteBudget(100, tenants=2)
    budget.reserve("greedy", 30)
    budget.reserve("greedy", 20)
    with pytest.raises(ApiError) as caught:
        budget.reserve("greedy", 1)
    assert caught.value.status_code == 429
    assert caught.value.headers is not None
    assert caught.value.headers["retry-after"] == "1"
    budget.reserve("modest", 25)
    with pytest.raises(ApiError):
        budget.reserve("modest", 1)
    assert budget.num_bytes == 75


def test_tenant_that_holds_nothing_may_exceed_its_share() -> None:
    budget = ByteBudget(100, tenants=2)
    budget.reserve("greedy", 100)
    budget.release("greedy", 100)
    budget.reserve("modest", 100)
    with pytest.raises(ApiError) as caught:
        budget.reserve("greedy", 1)
    assert caught.value.status_code == 503


async def turn() -> None:
    """Lets all tasks go on that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_bytes_are_waited_for() -> None:
    budget, admitted = ByteBudget(100, tenants=2), list[str]()

    async def wait(owner: str, num_bytes: int) -> None:
        await budget.wait(owner, num_bytes)
        admitted.append(f"{owner} {num_bytes}")

    budget.reserve("a", 90)
    async with asyncio.TaskGroup() as group:
        for owner, num_bytes in (("a", 20), ("b", 60)):
            group.create_task(wait(owner, num_bytes))
        await turn()
        assert admitted == []
        budget.release("a", 50)
        await turn()
        assert admitted == ["a 20"]  # and holds as much as it leaves free with that
        budget.release("a", 20)
        await turn()
        assert admitted == ["a 20", "b 60"]
    with pytest.raises(ApiError) as caught:
        await budget.wait("a", 101)
    assert caught.value.status_code == 413


async def test_a_cancelled_wait_holds_nothing() -> None:
    budget = ByteBudget(100)
    budget.reserve("a", 90)
    waiting = asyncio.create_task(budget.wait("b", 50))
    await turn()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    budget.release("a", 40)
    await turn()
    assert budget.num_bytes == 50


async def line_of(admissions: Admissions, owner: str, sizes: list[int], ended: list[str]) -> None:
    """Reserves memory step by step, as a line of a batch does."""
    tenant.set(owner)  # of this task only
    memory = PreemptibleAdmission(admissions)
    await memory.begin()
    for size in sizes:
        await memory.keep(size)
        await turn()
    await memory.settle()
    await turn()
    ended.append(owner)
    memory.release()


async def test_lines_that_wait_for_memory_never_wait_for_each_other() -> None:
    """Each needs most of the memory, and holds a part of it when it asks for the rest."""
    admissions, ended = Admissions(), list[str]()
    admissions.kept_preemptible = ByteBudget(100)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for owner in "abcabc":
            group.create_task(line_of(admissions, owner, [30, 60], ended))
    assert sorted(ended) == list("aabbcc")
    assert admissions.kept_preemptible.num_bytes == 0


async def test_a_large_line_of_one_of_eight_tenants_is_overtaken_a_bounded_number_of_times() -> None:
    """Small lines of the seven others follow each other, so that the large one's memory is never free by itself."""
    admissions, ended = Admissions(tenants=8), list[str]()
    admissions.kept_preemptible = ByteBudget(1000, tenants=8)

    async def lines_of(owner: str, count: int) -> None:
        tenant.set(owner)  # of this task only
        for _ in range(count):
            line = PreemptibleAdmission(admissions)
            await line.begin()
            await line.keep(50)
            await line.settle()
            for _ in range(1 + ord(owner) % 5):  # while it generates
                await turn()
            ended.append(owner)
            line.release()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for owner in "bcdefgh" * 4:
            group.create_task(lines_of(owner, 40))
        await turn()
        num_before = len(ended)
        group.create_task(line_of(admissions, "a", [300, 600], ended))
    num_overtaken = ended.index("a") - num_before
    assert len(ended) == 7 * 4 * 40 + 1
    assert MAX_OVERTAKEN / 2 < num_overtaken < 2 * (MAX_OVERTAKEN + 28)  # each of its two reservations, and what ran


async def test_lines_take_no_memory_of_requests() -> None:
    """They wait for room, and so would take all of it, whatever a tenant may hold."""
    admissions = Admissions(ROOM, 0, tenants=2)
    line = PreemptibleAdmission(admissions)
    await line.keep(admissions.max_kept_bytes)
    request = admissions.open()
    await request.keep(1)
    request.release()
    await line.settle()
    line.release()


async def test_parsed_bodies_leave_the_budget_of_bodies(service: Service, engine: FakeEngine) -> None:
    """Requests that run don't hold the budget of unparsed bodies."""
    engine.gate.clear()
    body = b'{"prompt": "a", "stream": true, "max_tokens": 1}'.ljust(ROOM)
    async with shared(service) as client:
        slow = [asyncio.create_task(client.post("/v1/completions", content=body, headers=key("g"))) for _ in range(40)]
        await until(lambda: len(engine.running) == 40)
        other = asyncio.create_task(client.post("/v1/completions", content=body, headers=key("m")))
        await until(lambda: len(engine.running) == 41)
        engine.gate.set()
        assert {response.status_code for response in await asyncio.gather(*slow, other)} == {200}


async def test_slow_bodies_of_a_tenant_leave_room_for_another(service: Service) -> None:
    """Unparsed bodies of a tenant hold at most as many bytes as they leave free."""
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
        assert statuses.count(200) == 17  # the last body that fits leaves less free than it holds
        assert statuses.count(429) == 13


async def test_parsed_requests_are_bounded_until_responses_end(service: Service, engine: FakeEngine) -> None:
    engine.gate.clear()
    body = json.dumps({"prompt": [300] * 200, "max_tokens": 1}, separators=(",", ":")).encode()
    async with shared(service) as client:
        tasks: list[asyncio.Task[httpx.Response]] = []
        while not any(task.done() for task in tasks):
            tasks.append(asyncio.create_task(client.post("/v1/completions", content=body, headers=key("g"))))
            await until(lambda: len(engine.running) == len(tasks) or tasks[-1].done())
        assert tasks[-1].result().status_code == 429
        assert 5 < len(tasks) < 20  # half of 256,000 bytes, at about 12,000 bytes each
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
def test_size_of_a_body_is_its_memory(name: str) -> None:
    kind, content = BODIES[name]
    raw = json.dumps(content).encode()
    kind.model_validate(decode_json(raw))  # type: ignore[attr-defined]  # fills caches
    size, num_bytes = _measured(kind, raw)
    assert num_bytes - NOISE <= size <= 1.25 * num_bytes


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=80), inner, max_size=20),
    max_leaves=20,
)


@settings(max_examples=10, deadline=None)
@given(json_values)
def test_size_of_any_json_is_its_memory(value: Any) -> None:
    """Values are repeated, so that objects which happen to be shared don't matter."""
    content = {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": [value] * 50}}
    raw = json.dumps(content).encode()
    size, num_bytes = _measured(ChatBody, raw)
    assert 0.98 * num_bytes - NOISE <= size <= 1.25 * num_bytes + NOISE


def _measured(kind: Any, raw: bytes) -> tuple[int, int]:
    """Returns the estimated size of a body, and its size according to tracemalloc."""
    gc.collect()  # dictionaries that CPython keeps for reuse would not be counted
    gc.disable()  # freed garbage would be subtracted
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        body = kind.model_validate(decode_json(raw))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    return size_of(body), after - before


async def test_request_larger_than_the_budget_is_refused(service: Service) -> None:
    """The response tells clients not to retry."""
    async with client_of(create_app(limited(service, 20_000))) as client:
        body = {"prompt": [5] * 4000, "echo": True, "logprobs": 20, "max_tokens": 1}
        response = await client.post("/v1/completions", json=body)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert "retry-after" not in response.headers


async def test_saved_state_counts_for_each_prompt(service: Service, engine: FakeEngine) -> None:
    """Each prompt has its own copy of the state's token ids."""
    async with client_of(create_app(limited(service, 700))) as client:
        response = await client.post("/generate", json={"token_ids": [5] * 150, "max_tokens": 1})
        saved = (await client.post("/v1/states", json={"request_id": response.json()["id"]})).json()
        num_requests = len(engine.requests)
        body = {"prompt": [[5]] * 225, "from_state": saved["id"], "max_tokens": 1}
        content = json.dumps(body, separators=(",", ":")).encode()
        assert (await client.post("/v1/completions", content=content, headers=JSON)).status_code == 413
        assert len(engine.requests) == num_requests
