"""On what terms a request is served: priority, deadlines, and what it hears when there is no room or no time."""

import asyncio
import time
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of, make_service, served_model, until
from roost.engine import (
    ConstraintError,
    EngineDeadError,
    NumericError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
)
from roost.server.app import create_app
from roost.server.errors.request_errors import from_exception
from roost.server.text.tokenizer import Tokenizer

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/generate": {"token_ids": [5], "max_tokens": 2},
}


@pytest.mark.parametrize("path", BODIES)
async def test_every_api_takes_them(client: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.says = [5]
    terms = {"priority": -2, "queue_timeout": 5, "timeout": 60}
    before = time.monotonic()
    response = await client.post(path, json={**BODIES[path], **terms})
    assert response.status_code == 200, response.text
    request = engine.requests[0]
    assert request.priority == -2
    assert before + 5 <= request.start_by <= time.monotonic() + 5
    assert before + 60 <= request.deadline <= time.monotonic() + 60


async def test_the_operators_limit_holds_whatever_is_asked_for(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    service = make_service(engine, served_model(tokenizer), request_timeout_s=10.0)
    async with client_of(create_app(service)) as client:
        for timeout, seconds in ((None, 10), (5, 5), (1000, 10)):
            before = time.monotonic()
            await client.post("/v1/completions", json={"prompt": "a", "timeout": timeout})
            assert before + seconds <= engine.requests[-1].deadline <= time.monotonic() + seconds


@pytest.mark.parametrize("name", ["timeout", "queue_timeout"])
@pytest.mark.parametrize("value", [0, -1, "1", 1e999])
async def test_times_that_are_none(client: httpx.AsyncClient, name: str, value: Any) -> None:
    content = f'{{"prompt": "a", "{name}": {value!r}}}'.replace("'", '"').replace("inf", "1e999")
    response = await client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    ("error", "status", "code", "retries"),
    [
        (QueueFullError("full", 2.5), 429, "rate_limit_exceeded", ("3", "2500", None)),
        (QueueTimeoutError("late"), 503, "queue_timeout", ("1", "1000", None)),
        (RequestTimeoutError("late"), 504, "request_timeout", (None, None, "false")),
        (ConstraintError("no"), 400, "constraint_failed", (None, None, None)),
        (EngineDeadError("dead"), 503, "engine_unavailable", ("1", "1000", None)),
        (NumericError("nan"), 500, "numeric_error", (None, None, None)),
    ],
)
def test_each_failure_says_whether_to_come_back(
    error: Exception, status: int, code: str, retries: tuple[str | None, ...]
) -> None:
    answer = from_exception(error)
    headers = answer.headers or {}
    assert (answer.status_code, answer.body["error"]["code"]) == (status, code)
    assert tuple(headers.get(name) for name in ("retry-after", "retry-after-ms", "x-should-retry")) == retries


async def test_time_that_is_up_in_the_middle_of_a_stream(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fails_after, engine.fails_with = 3, RequestTimeoutError("the request was not done in the time that it had")
    body = {"prompt": "a", "stream": True, "max_tokens": 9}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        lines = [line async for line in response.aiter_lines() if line]
    assert response.status_code == 200
    assert len(lines) == 4
    assert '"code":"request_timeout"' in lines[-1]
    metrics = (await client.get("/metrics")).text
    assert 'roost_requests_total{reason="timeout"} 1.0' in metrics
    await until(lambda: not engine.running)


async def test_a_background_response_that_fails_is_not_called_cancelled(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.fails_after, engine.fails_with = 1, RequestTimeoutError("the request was not done in the time that it had")
    begun = (await client.post("/v1/responses", json={"input": "a", "background": True})).json()
    while (ended := (await client.get(f"/v1/responses/{begun['id']}")).json())["status"] == "in_progress":
        await asyncio.sleep(0.005)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
