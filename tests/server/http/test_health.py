"""Health checks, load and information about the server."""

from dataclasses import replace

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, client_of
from roost.engine import CacheStats
from roost.server.app import create_app
from roost.server.assembly.service import LoadProgress
from roost.server.generation.service import Limits, Service


async def prove(service: Service) -> httpx.Response:
    async with client_of(create_app(service)) as client:
        return await client.get("/health_generate")


async def test_a_token_proves_health(service: Service, engine: FakeEngine) -> None:
    assert (await prove(service)).json() == {"status": "ok"}
    (request,) = engine.requests
    assert (tuple(request.prompt_token_ids), request.params.max_tokens) == ((2,), 1)
    assert not engine.running


async def test_a_token_that_does_not_come_is_a_reason(service: Service, engine: FakeEngine) -> None:
    engine.gate.clear()
    response = await prove(replace(service, limits=Limits(proof_s=0.02)))
    assert (response.status_code, response.json()["error"]["message"]) == (503, "no token came within 0.02 s")
    assert not engine.running


async def test_a_full_queue_is_a_reason(service: Service, engine: FakeEngine) -> None:
    engine.capacity = 0
    response = await prove(service)
    assert (response.status_code, response.json()["error"]["message"]) == (503, "the queue is full")


@pytest.mark.parametrize("when", ["loading", "before", "meanwhile"])
async def test_without_an_engine_there_is_no_health(service: Service, engine: FakeEngine, when: str) -> None:
    if when == "loading":
        engine.ready.clear()
    elif when == "before":
        engine.failure = RuntimeError("secret")
    else:
        engine.dies_after = 0
    response = await prove(service)
    assert response.status_code == 503
    assert "secret" not in response.text


async def test_a_request_while_the_model_loads_says_how_far_it_is(service: Service, engine: FakeEngine) -> None:
    engine.ready.clear()
    progress = LoadProgress()
    for step in (("weights", 8, 8), ("compile", 3, 21)):
        progress(*step)
    async with client_of(create_app(replace(service, loading=lambda: progress.text))) as client:
        response = await client.post("/v1/completions", json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
    where = "loading weights: 8 of 8, compiling: 3 of 21"
    message = f"the model is still loading ({where}): GET /health/ready is 200 once it is ready"
    assert response.json()["error"]["message"] == message


async def test_load_and_facts(client: httpx.AsyncClient) -> None:
    assert (await client.get("/load")).json() == {
        "server_load": 0,
        "running": 0,
        "waiting": 0,
        "slots": 4,
    }
    facts = (await client.get("/server_info")).json()
    assert (facts["model"], facts["fingerprint"], facts["slots"]) == ("counter", "fp_test", 4)
    assert facts["state_cache_bytes"] == 4000
    assert facts["max_tokens_limit"] is None
    assert facts["version"] == (await client.get("/version")).json()["version"]


async def test_the_load_has_no_totals_of_other_tenants(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other tenants' prompts took, or found in the prefix cache, changes nothing in it."""
    before = (await client.get("/load")).json()
    cache = CacheStats(hit_tokens=10**6, num_bytes=10**6)
    busy = replace(FakeEngine(VOCAB_SIZE).stats, prompt_tokens=10**6, generated_tokens=10**6, cache=cache)
    monkeypatch.setattr(FakeEngine, "stats", busy)
    assert (await client.get("/load")).json() == before
