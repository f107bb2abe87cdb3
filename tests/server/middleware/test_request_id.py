"""Request ids, the log line, and the key."""

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.middleware.api_keys import ApiKeys
from roost.server.middleware.auth import Access


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123_x.y:z", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("a\u00e9", False), ("", False)],
)
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, given: str, kept: bool) -> None:
    response = await client.get("/health", headers={"x-request-id": given.encode()})
    request_id = response.headers["x-request-id"]
    assert (request_id == given) is kept
    assert kept or request_id.startswith("req_")


async def test_every_answer_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "stream": True}
    answers = [
        await client.get("/health"),
        await client.get("/nowhere"),
        await client.post("/v1/completions", json=body),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert all(answer.headers["openai-processing-ms"].isdecimal() for answer in answers)
    assert {answer.headers["openai-version"] for answer in answers} == {"2020-10-01"}


async def test_one_line_per_request(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await client.get("/v1/models", headers={"x-client-request-id": "mine"})
    await client.get("/a%0Ab", headers={"x-client-request-id": "a b"})
    await client.get("/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "roost.server.middleware.request_id"]
    assert [line.split(" 0.")[0] for line in lines] == ["GET /v1/models 200", "GET /a%0Ab 404"]
    assert [line.endswith("client-id=mine") for line in lines] == [True, False]


@pytest.fixture
async def locked(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Wants the key "sesame"."""
    transport = httpx.ASGITransport(create_app(service, Access(ApiKeys(["sesame"]))))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


@pytest.mark.parametrize(
    "given", [None, "", "sesame", "Bearer", "Bearer ", "Bearer sesam", "Basic sesame", "Bearer \u00e9"]
)
async def test_without_the_key(locked: httpx.AsyncClient, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode()}
    for path in ("/v1/models", "/version", "/nowhere"):
        response = await locked.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]


async def test_with_the_key(locked: httpx.AsyncClient) -> None:
    for given in ("Bearer sesame", "bearer sesame"):
        assert (await locked.get("/v1/models", headers={"authorization": given})).status_code == 200


async def test_probes_need_no_key(locked: httpx.AsyncClient) -> None:
    for path in ("/health", "/health/ready", "/metrics"):
        assert (await locked.get(path)).status_code == 200


async def test_the_key_may_come_as_anthropics_clients_send_it(locked: httpx.AsyncClient) -> None:
    assert (await locked.get("/v1/models", headers={"x-api-key": "sesame"})).status_code == 200
    both = {"x-api-key": "sesame", "authorization": "Bearer wrong"}
    assert (await locked.get("/v1/models", headers=both)).status_code == 200
    assert (await locked.get("/v1/models", headers={"x-api-key": "sesam"})).status_code == 401


async def test_the_id_has_anthropics_name_too(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/health")).headers
    assert headers["request-id"] == headers["x-request-id"]
