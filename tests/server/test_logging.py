"""Log lines: what stands in them, and what never does."""

import json
import logging
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fake_engine import FakeEngine
from roost.server.access import Access
from roost.server.app import create_app
from roost.server.keys import ApiKeys
from roost.server.logging import set_up_logging
from roost.server.service import Service

KEY = {"authorization": "Bearer topsecretkey"}


@pytest.fixture
def as_json() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("roost")
    kept = (root.handlers[:], root.level, ours.level)
    set_up_logging(logging.DEBUG, as_json=True)
    yield
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    ours.setLevel(kept[2])


@pytest.fixture
async def locked(service: Service, as_json: None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, Access(ApiKeys(["alice:topsecretkey"])))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        yield client


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def test_a_line_is_an_object(locked: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    headers = {**KEY, "x-request-id": "r-1", "x-client-request-id": "mine"}
    await locked.get("/v1/models", headers=headers)
    (line,) = lines(capsys)
    assert isinstance(line.pop("seconds"), float)
    assert str(line.pop("time")).endswith("+00:00")
    assert str(line.pop("message")).startswith("GET /v1/models 200 ")
    assert line == {
        "level": "info",
        "logger": "roost.server.middleware",
        "request_id": "r-1",
        "tenant": "alice",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "client_id": "mine",
    }


async def test_a_failure_has_its_trace(
    locked: httpx.AsyncClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.breaks_after = 0
    await locked.post("/v1/completions", json={"prompt": "a"}, headers=KEY)
    assert any("RuntimeError: secret detail" in str(line.get("exception")) for line in lines(capsys))


async def test_prompts_answers_and_keys_are_never_logged(
    locked: httpx.AsyncClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where something fails, or is refused."""
    for path, body in (
        ("/v1/completions", {"prompt": "topsecret", "echo": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "topsecret"}], "unknown": "topsecret"}),
        ("/v1/completions", {"prompt": "a", "stop": ["topsecret", 1]}),
        ("/v1/completions", {"prompt": "a", "guided_regex": "topsecret("}),
        ("/v1/completions?q=topsecret", {"prompt": "topsecret", "stream": True}),
    ):
        for breaks_after in (None, 1):
            engine.breaks_after = breaks_after
            await locked.post(path, json=body, headers=KEY)
    await locked.get("/v1/models", headers={"authorization": "Bearer topsecretkez"})
    written = capsys.readouterr().err
    assert written.count("\n") > 10
    assert "topsecret" not in written
