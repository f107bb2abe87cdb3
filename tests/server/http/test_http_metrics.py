"""HTTP requests, as metrics count them."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fake_server import client_of
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys

HEADERS = {"authorization": "Bearer k"}


@pytest.fixture
async def keyed(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(service, Access(ApiKeys(["k"]))), headers=HEADERS) as client:
        yield client


def counts(service: Service) -> dict[tuple[str, str, str], float]:
    (family,) = (each for each in service.metrics.registry.collect() if each.name == "http_requests")
    return {
        (sample.labels["handler"], sample.labels["method"], sample.labels["status"]): sample.value
        for sample in family.samples
    }


async def test_requests_are_counted_by_template_method_and_status(service: Service, keyed: httpx.AsyncClient) -> None:
    for _ in range(2):
        await keyed.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    await keyed.post("/v1/completions", json={"prompt": "a", "max_tokens": -1})
    await keyed.get("/v1/responses/resp_1")
    await keyed.get("/v1/responses/resp_2")
    await keyed.put("/v1/completions")
    await keyed.head("/v1/models")
    assert counts(service) == {
        ("/v1/completions", "POST", "200"): 2,
        ("/v1/completions", "POST", "400"): 1,
        ("/v1/responses/{response_id}", "GET", "404"): 2,
        ("/v1/completions", "PUT", "405"): 1,
        ("/v1/models", "HEAD", "200"): 1,
    }


async def test_clients_cannot_make_series(service: Service, keyed: httpx.AsyncClient) -> None:
    for number in range(3):
        await keyed.get(f"/no/{number}")
        await keyed.request(f"METHOD{number}", "/no")
    assert counts(service) == {("none", "GET", "404"): 3, ("none", "other", "404"): 3}


async def test_a_refused_request_is_counted_under_its_endpoint(service: Service, keyed: httpx.AsyncClient) -> None:
    await keyed.post("/v1/chat/completions", headers={"authorization": "Bearer wrong"}, json={})
    assert counts(service) == {("/v1/chat/completions", "POST", "401"): 1}


async def test_probes_and_scrapes_are_not_counted(service: Service, keyed: httpx.AsyncClient) -> None:
    for path in ("/health", "/health/ready", "/metrics"):
        assert (await keyed.get(path)).status_code == 200
    assert counts(service) == {}


async def test_versions_and_the_process_are_metrics(keyed: httpx.AsyncClient) -> None:
    page = (await keyed.get("/metrics")).text
    assert 'roost_build_info{jax="' in page
    assert "process_resident_memory_bytes " in page
