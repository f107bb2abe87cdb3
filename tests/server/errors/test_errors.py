"""Every error has OpenAI's shape and reveals nothing of the server's internals."""

import logging
import re
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of, make_service, served_model
from roost import server
from roost.server.app import create_app
from roost.server.errors import kinds
from roost.server.errors.request_errors import bad_value, from_exception
from roost.server.text.tokenizer import Tokenizer

CHAT = "/v1/chat/completions"
ALL_KINDS = [value for value in vars(kinds).values() if isinstance(value, kinds.ErrorKind)]


def error_of(response: httpx.Response, status: int) -> dict[str, str | None]:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, str | None] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert response.headers["x-request-id"]
    return error


async def test_unknown_route(client: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/v1/nothing", "/v1/completions/"):
        assert path in str(error_of(await client.get(path), 404)["message"])


async def test_wrong_method(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/completions")
    assert error_of(response, 405)["code"] == "method_not_supported"
    assert response.headers["allow"] == "POST"


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    for path, field in ((CHAT, "messages"), ("/v1/completions", "prompt"), ("/tokenize", "prompt")):
        value = [{"role": "user", "content": "x"}] if field == "messages" else "x"
        error = error_of(await client.post(path, json={"model": "gpt-5", field: value}), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'gpt-5' does not exist: this server has " in str(error["message"])


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"])
async def test_a_body_that_is_not_json(client: httpx.AsyncClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(await client.post(CHAT, content=content, headers=headers), 400)


@pytest.mark.parametrize("content", [b"[]", b"5", b'"x"', b""])
async def test_a_body_that_is_no_object(client: httpx.AsyncClient, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert error_of(await client.post(CHAT, content=content, headers=headers), 400)["param"] is None


async def test_a_body_of_another_type(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert "application/json" in str(error_of(response, 400)["message"])


async def test_a_field_that_is_missing(client: httpx.AsyncClient) -> None:
    assert error_of(await client.post(CHAT, json={}), 400)["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue(client: httpx.AsyncClient, engine: FakeEngine, stream: bool) -> None:
    """A queue without room for the last of several choices takes none of them."""
    engine.capacity = 2
    response = await client.post("/v1/completions", json={"prompt": "a", "n": 3, "stream": stream})
    assert error_of(response, 429)["code"] == "rate_limit_exceeded"
    assert response.headers["retry-after"] == "1"
    assert not engine.running


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_before_the_first_token(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    engine.dies_after = 0
    response = await client.post("/v1/completions", json={"prompt": "a", "stream": stream})
    assert error_of(response, 503)["type"] == "server_error"


async def test_an_unexpected_exception(
    tokenizer: Tokenizer, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("secret detail")

    service = make_service(engine, served_model(tokenizer))
    service.metrics.page = fail
    async with client_of(create_app(service)) as client:
        error = error_of(await client.get("/metrics"), 500)
    assert error["message"] == "internal server error"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


def test_exceptions_of_the_code_are_not_told() -> None:
    assert "secret" not in str(from_exception(KeyError("secret")).body)


def test_each_kind_of_error_occurs_in_the_server() -> None:
    files = [path for path in Path(server.__file__).parent.rglob("*.py") if path.name != "kinds.py"]
    used = set(re.findall(r"\bkinds\.([A-Z_]+)", "".join(path.read_text() for path in files)))
    assert used == {name for name, value in vars(kinds).items() if isinstance(value, kinds.ErrorKind)}


@pytest.mark.parametrize("text", ["a\nb\r\x00\u2028", "a" * 5000])
def test_a_message_is_one_line_of_bounded_length(text: str) -> None:
    """Also the name of a field, which may be the client's."""
    error = bad_value(text, text).body["error"]
    for each in (error["message"], str(error["param"])):
        assert each.isprintable()
        assert len(each) <= 1000


ERRORS_PAGE = Path(__file__).resolve().parents[3] / "docs/reference/errors.md"


def test_the_page_of_errors_has_each_kind() -> None:
    """Its tables, one for each type, have the codes, statuses and headers."""
    on_page = set()
    for section in ERRORS_PAGE.read_text().split("\n## `")[1:]:
        rows = re.findall(r"^\| (\S+) \| (\d{3}) \| (.*?) \|", section, re.MULTILINE)
        on_page |= {(section.partition("`")[0], *(cell.replace("`", "") for cell in cells)) for cells in rows}
    shown = {"x-should-retry": "x-should-retry: false", "connection": "connection: close", "retry-after-ms": ""}
    of_kinds = {
        (
            kind.type,
            kind.code or "–",
            str(kind.status),
            ", ".join(filter(None, (shown.get(name, name) for name in kind.headers))) or "–",
        )
        for kind in ALL_KINDS
    }
    assert on_page == of_kinds


def test_a_client_that_has_to_wait_is_told_for_how_long() -> None:
    for kind in ALL_KINDS:
        if kind.status in (429, 503):
            assert kind.headers["retry-after"] == "1"
