"""Request ids and the access log."""

import logging

import httpx
import pytest
from fake_engine import FakeEngine


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-123_x.y:z", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("a\u00e9", False), ("", False)],
)
async def test_safe_request_id_is_kept(client: httpx.AsyncClient, sent: str, kept: bool) -> None:
    response = await client.get("/health", headers={b"x-request-id": sent.encode()})
    request_id = response.headers["x-request-id"]
    assert (request_id == sent) is kept
    assert kept or request_id.startswith("req_")


async def test_each_response_has_its_own_id(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "stream": True}
    responses = [
        await client.get("/health"),
        await client.get("/nowhere"),
        await client.post("/v1/completions", json=body),
    ]
    assert len({response.headers["x-request-id"] for response in responses}) == 3
    assert all(response.headers["request-id"] == response.headers["x-request-id"] for response in responses)
    assert all(response.headers["openai-processing-ms"].isdecimal() for response in responses)
    assert {response.headers["openai-version"] for response in responses} == {"2020-10-01"}


async def test_access_log_has_one_line_per_request(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await client.get("/v1/models")
    await client.get("/a%0Ab")
    await client.get("/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "roost.server.http.middleware"]
    assert [line.split(" 0.")[0] for line in lines] == ["GET /v1/models 200", "GET /a%0Ab 404"]


async def test_a_5xx_is_a_warning(
    client: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.dies_after = 0
    response = await client.post("/v1/completions", json={"prompt": "a"})
    (logged,) = [record for record in caplog.records if record.name == "roost.server.http.middleware"]
    assert (logged.levelname, response.status_code) == ("WARNING", 503)
    assert logged.getMessage().endswith(": the engine died")
