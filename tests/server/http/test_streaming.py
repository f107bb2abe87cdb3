"""Streams over a real socket: what is sent when, and what becomes of the engine's work when a client goes away."""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import live, make_service, until
from held_time import held_time
from roost.server.generation.delta import Delta
from roost.server.generation.generation import Generation, TakeText
from roost.server.generation.prompts import Prompt
from roost.server.generation.service import Service
from roost.server.http.responses import KEEP_ALIVE, BodyWriter, stream_events
from roost.server.observability.logging import ACCESS_LOGGER
from roost.server.openai.completions import ChatBody, ChatResponseBuilder
from roost.server.text.served_model import ServedModel

LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 1_000_000, "ignore_eos": True}


async def test_text_is_sent_as_it_comes(service: Service, engine: FakeEngine) -> None:
    async with live(service) as client, client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as got:
        lines = got.aiter_lines()
        first = await anext(lines)
        assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == "b"
        assert engine.running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_goes_away_frees_its_slots(
    service: Service, engine: FakeEngine, n: int, stream: bool
) -> None:
    async with live(service) as client:
        post = client.post("/v1/completions", json={**LONG, "n": n, "stream": stream})
        request = asyncio.create_task(post)
        await until(lambda: len(engine.running) == n)
        request.cancel()
        await until(lambda: not engine.running)
        metrics = (await client.get("/metrics")).text
        assert f'roost_requests_total{{reason="abort"}} {n}.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_while_it_waits(service: Service, engine: FakeEngine, stream: bool) -> None:
    """No token has come yet, so nothing is sent that could fail."""
    engine.gate.clear()
    async with live(service) as client:
        request = asyncio.create_task(client.post("/v1/completions", json={**LONG, "stream": stream}))
        await until(lambda: engine.running)
        request.cancel()
        await until(lambda: not engine.running)


async def test_a_client_that_goes_away_while_a_comment_is_all_it_got(engine: FakeEngine, model: ServedModel) -> None:
    engine.gate.clear()
    async with live(make_service(engine, model, keep_alive_s=0.01)) as client:
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            assert await anext(response.aiter_raw()) == KEEP_ALIVE
        await until(lambda: not engine.running)


async def test_a_silent_stream_is_kept_alive_by_comments(engine: FakeEngine, model: ServedModel) -> None:
    engine.gate.clear()
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "stream": True}
    async with live(make_service(engine, model, keep_alive_s=0.05)) as client:
        lines = []
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 3:
                    engine.gate.set()
    role, *rest = filter(None, lines)
    assert '"role":"assistant"' in role
    assert rest[-1] == "data: [DONE]"
    assert [event for event in rest if not event.startswith(":")] == rest[rest.count(": keep-alive") :]


class Scripted(Generation):
    """Gives these deltas, one after the other, without ever waiting."""

    def __init__(self, deltas: Sequence[Delta]) -> None:
        self._deltas = iter(deltas)

    async def next_within(self, timeout_s: float | None, take: TakeText | None = None) -> Delta | None:
        for delta in self._deltas:
            return delta
        raise StopAsyncIteration


async def test_a_stream_of_tokens_without_text_is_kept_alive_too(model: ServedModel) -> None:
    """Tokens keep coming, but all of them are held back, as for a stop string, or have no text."""
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    builder = ChatResponseBuilder(body, model, Prompt((4,)))
    silent = Delta(0, token_ids=(7,))
    generation = Scripted([silent, Delta(0, "b", token_ids=(7,)), silent, silent])
    events = [event async for event in stream_events(generation, None, builder, keep_alive_s=0.0)]
    assert [event == KEEP_ALIVE for event in events] == [False, True, False, True, True, False]


async def test_text_that_is_written_directly_postpones_the_comment(model: ServedModel) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    builder, written, waits = ChatResponseBuilder(body, model, Prompt((4,))), list[bytes](), list[float | None]()
    writer = cast(BodyWriter, SimpleNamespace(is_open=True, write=written.append))
    with held_time() as time:

        class Direct(Generation):
            def __init__(self) -> None:
                pass

            async def next_within(self, timeout_s: float | None, take: TakeText | None = None) -> Delta | None:
                waits.append(timeout_s)
                if len(waits) == 3:
                    raise StopAsyncIteration
                if len(waits) == 1:
                    await time.skip(0.75)
                    assert take is not None
                    assert take(0, "b", 1)
                await time.skip(0.5)
                return None

        events = [event async for event in stream_events(Direct(), None, builder, 1.0, writer=writer)]
    assert len(written) == 1
    assert waits == pytest.approx([1.0, 0.5, 1.0]), "after 0.5 s of silence there is nothing to send"
    assert [event == KEEP_ALIVE for event in events] == [False, True, False]


async def test_a_failure_in_the_middle_is_an_event_and_the_end(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The access log has it as a warning, which is also written without a line for each request."""
    engine.dies_after = 2
    response = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert response.status_code == 200
    *chunks, error, rest = response.text.split("\n\n")
    assert [json.loads(chunk[6:])["choices"][0]["finish_reason"] for chunk in chunks] == [None, None]
    assert json.loads(error.removeprefix("data: ")) == {
        "error": {"message": "the engine died", "type": "server_error", "param": None, "code": "engine_unavailable"}
    }
    assert rest == ""
    assert not engine.running
    (logged,) = [record for record in caplog.records if record.name == ACCESS_LOGGER]
    assert (logged.levelname, logged.getMessage().endswith(": the engine died")) == ("WARNING", True)


async def test_a_bug_in_the_middle_is_told_to_the_log_only(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.breaks_after = 2
    response = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert '"message":"internal server error"' in response.text
    assert "secret" not in response.text
    assert any(record.exc_info for record in caplog.records)
