"""Log lines: their fields, and content that is never logged."""

import json
import logging
import re
import sys
import threading
import urllib.parse
import warnings
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of
from prometheus_client import CollectorRegistry
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.http.middleware import RequestScope
from roost.server.observability.logging import ACCESS_LOGGER, log_warnings_and_uncaught, request_id, say, set_up_logging
from roost.server.observability.request_metrics import HttpMetrics
from starlette.types import Receive, Scope, Send

KEY = {"authorization": "Bearer topsecretkey"}


@pytest.fixture
def as_json() -> Iterator[None]:
    yield from logs(as_json=True)


@pytest.fixture
def as_text() -> Iterator[None]:
    yield from logs(as_json=False)


def logs(*, as_json: bool) -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("roost")
    kept = (root.handlers[:], root.level, ours.level)
    set_up_logging(logging.DEBUG, as_json=as_json)
    yield
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    ours.setLevel(kept[2])
    logging.getLogger(ACCESS_LOGGER).setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.fixture
async def locked(service: Service, as_json: None) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(service, Access(ApiKeys(["alice:topsecretkey"])))) as client:
        yield client


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def test_line_is_a_json_object(locked: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    headers = {**KEY, "x-request-id": "r-1"}
    await locked.get("/v1/models", headers=headers)
    (line,) = lines(capsys)
    assert isinstance(line.pop("seconds"), float)
    assert str(line.pop("time")).endswith("+00:00")
    assert str(line.pop("message")).startswith("GET /v1/models 200 ")
    assert line == {
        "level": "info",
        "logger": "roost.server.http.middleware",
        "request_id": "r-1",
        "tenant": "alice",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "client": "127.0.0.1",
    }


async def test_failure_has_a_traceback(
    locked: httpx.AsyncClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.breaks_after = 0
    await locked.post("/v1/completions", json={"prompt": "a"}, headers=KEY)
    assert any("RuntimeError: secret detail" in str(line.get("exception")) for line in lines(capsys))


async def test_prompts_outputs_and_keys_are_never_logged(
    locked: httpx.AsyncClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failures and refusals don't log them either."""
    for path, body in (
        ("/v1/completions", {"prompt": "topsecret", "echo": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "topsecret"}], "unknown": "topsecret"}),
        ("/v1/completions", {"prompt": "a", "stop": ["topsecret", 1]}),
        ("/v1/completions", {"prompt": "a", "regex": "topsecret("}),
        ("/v1/completions?q=topsecret", {"prompt": "topsecret", "stream": True}),
    ):
        for breaks_after in (None, 1):
            engine.breaks_after = breaks_after
            await locked.post(path, json=body, headers=KEY)
    await locked.get("/v1/models", headers={"authorization": "Bearer topsecretkez"})
    written = capsys.readouterr().err
    assert written.count("\n") > 10
    assert "topsecret" not in written


FORGED = "a\n2026-01-01 00:00:00 INFO    - POST /admin 200\r\x85\u2028\x1b[2K\u202e\ud800"
"""Line breaks of all kinds, and control characters of terminals."""


async def raising(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError(FORGED)


@pytest.mark.usefixtures("as_text")
async def test_client_cannot_forge_a_text_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Paths, exceptions and messages of other libraries are escaped."""
    async with client_of(RequestScope(raising, HttpMetrics(CollectorRegistry()), (), "m")) as client:
        path = "/" + urllib.parse.quote(FORGED.encode("utf-8", "replace"))
        assert (await client.get(path, headers={"x-request-id": "c d"})).status_code == 500
    logging.getLogger("asyncio").error("connection lost: %s", FORGED)
    written = capsys.readouterr().err
    assert all(line.isprintable() for line in written.split("\n"))
    records = [line for line in written.split("\n") if line and not line.startswith("| ")]
    assert len(records) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (ERROR|WARNING|INFO) ", line) for line in records)
    assert not any(line.startswith("2026-01-01") for line in records)


@pytest.mark.usefixtures("as_json")
async def test_client_cannot_forge_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with client_of(RequestScope(raising, HttpMetrics(CollectorRegistry()), (), "m")) as client:
        await client.get("/" + urllib.parse.quote(FORGED.encode("utf-8", "replace")))
    logging.getLogger("asyncio").error("connection lost: %s", FORGED)
    assert [line["level"] for line in lines(capsys)] == ["error", "warning", "error"]


async def test_errors_shorten_values_of_clients(client: httpx.AsyncClient) -> None:
    """Errors are short and printable, whatever the client sent."""
    name = "\n" + "x" * 100_000
    for body in ({"prompt": "a", "model": name}, {"prompt": "a", "logit_bias": {name: "b"}}):
        response = await client.post("/v1/completions", json=body)
        assert response.status_code in (400, 404)
        assert len(response.content) < 3000
        assert response.json()["error"]["message"].isprintable()


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/v1/completions", {"prompt": "a", "temperature": 3}, "temperature must be at most 2"),
        ("/v1/completions", {"prompt": "a", "n": "topsecret"}, "n must be a whole number"),
        ("/v1/completions", {"prompt": "a", "model": "topsecret"}, "the model … does not exist"),
        ("/v1/completions", {"prompt": "a", "model": 'it\'s "topsecret"'}, "the model … does not exist"),
        ("/v1/completions", {"prompt": "a", "model": "topsecret, got it"}, "the model …"),
        (
            "/v1/completions",
            {"prompt": "a", "truncation_side": "topsecret"},
            'truncation_side must be "left" or "right"',
        ),
        ("/v1/completions", {"prompt": "a", "regex": "topsecret("}, "regex was refused (invalid_requ"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "topsecret" * 50, "content": None}]},
            "a message of the role …",
        ),
        ("/v1/completions", {"prompt": "a", "stop": ["topsecret\n", 1]}, "stop[1] must be a string"),
        ("/nowhere%1Blevel", {}, "no such URL: GET /docs lists the endpoints"),
        ("/v1/models/%6Eone", {}, "no such method here: use GET"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"topsecret": 101}}, "logit_bias.… must be at most 100"),
        (
            "/v1/completions",
            {"prompt": "a", "structured_outputs": {"topsecret": 1}},
            "structured_outputs.… is unknown",
        ),
    ],
)
async def test_access_log_has_the_reason_of_a_refusal(
    locked: httpx.AsyncClient, capsys: pytest.CaptureFixture[str], path: str, body: dict[str, object], reason: str
) -> None:
    response = await locked.post(path, json=body, headers=KEY)
    (line,) = lines(capsys)
    assert line["status"] == response.status_code >= 400
    assert str(line["error"]).startswith(reason)
    assert str(line["message"]).endswith(f": {line['error']}")
    assert "topsecret" not in str(line)
    await locked.get("/v1/models", headers=KEY)
    (line,) = lines(capsys)
    assert "error" not in line


async def test_access_log_has_the_reason_of_a_refusal_by_middleware(
    locked: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    await locked.get("/v1/models", headers={"authorization": "Bearer wrong"})
    audited, line = lines(capsys)
    assert audited["logger"] == "roost.audit"
    assert str(line["error"]).startswith("missing or wrong API key")


async def test_long_reason_is_truncated(locked: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    await locked.get(f"/{'x' * 4000}", headers=KEY)
    (line,) = lines(capsys)
    assert len(str(line["error"])) <= 160


async def test_access_log_can_be_disabled(
    locked: httpx.AsyncClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failures are still logged, with the line of their request."""
    set_up_logging(as_json=True, access_log=False)
    await locked.get("/v1/models", headers=KEY)
    assert lines(capsys) == []
    engine.breaks_after = 0
    await locked.post("/v1/completions", json={"prompt": "a"}, headers=KEY)
    assert {line["level"] for line in lines(capsys)} == {"error", "warning"}


@pytest.mark.parametrize(("level", "logged"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_dropped(
    as_json: None, capsys: pytest.CaptureFixture[str], level: str, logged: int
) -> None:
    set_up_logging(logging.getLevelNamesMapping()[level.upper()], as_json=True)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("roost.test").log(each, "x")
    assert len(lines(capsys)) == logged
    for name in ("uvicorn.error", "asyncio", "jax"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).error("trouble")
    assert [line["message"] for line in lines(capsys)] == ["trouble"] * 3


def test_warnings_and_uncaught_exceptions_are_json_too(
    as_json: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    log_warnings_and_uncaught()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        log_warnings_and_uncaught()
        warnings.warn("two\nlines", stacklevel=1)
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()
    try:
        raise KeyError("bug")
    except KeyError as error:
        sys.excepthook(KeyError, error, error.__traceback__)
    say("compiling: 1 of 2", fields={"done": 1})
    warning, in_thread, bug, progress = lines(capsys)
    assert "two\nlines" in str(warning["message"])
    assert "ZeroDivisionError" in str(in_thread["exception"])
    assert "Traceback" in str(bug["exception"])
    assert (progress["message"], progress["done"], progress["level"]) == ("compiling: 1 of 2", 1, "info")


def test_log_lines_carry_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging()
        logging.getLogger("roost.test").info("outside")
        token = request_id.set("req_1")
        logging.getLogger("uvicorn.error").warning("inside")
        logging.getLogger("uvicorn.error").info("chatter")
        request_id.reset(token)
    finally:
        root.handlers[:], root.level = handlers, level
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("INFO    - outside")
    assert second.endswith("WARNING req_1 inside")


async def test_access_log_has_tokens_model_and_client(
    locked: httpx.AsyncClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.num_cached = 2
    body = {"prompt": "abc", "max_tokens": 5, "n": 2}
    for path, more in (("/v1/completions", {}), ("/v1/completions", {"stream": True})):
        await locked.post(path, json={**body, **more}, headers=KEY)
    await locked.get("/v1/models", headers=KEY)
    whole, streamed, other = [line for line in lines(capsys) if line["level"] == "info"]
    for line in (whole, streamed):
        assert line["client"] == "127.0.0.1"
        assert line["model"] == "counter"
        assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (4, 2, 10)
        assert isinstance(line["time_to_first_token"], float)
        assert " client=127.0.0.1 model=counter prompt_tokens=4 cached_tokens=2 completion_tokens=10 " in str(
            line["message"]
        )
    assert "model" not in other


@pytest.mark.usefixtures("as_json")
async def test_access_log_has_addresses_only(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """A proxy repeats what a client writes into X-Forwarded-For."""
    for address in ("2001:db8::1", "evil\n2026", "a" * 1000):
        transport = httpx.ASGITransport(create_app(service), client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
            await client.get("/v1/models")
    assert [line["client"] for line in lines(capsys)] == ["2001:db8::1", "", ""]
