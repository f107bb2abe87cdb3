"""Limits on a line of a batch file, and what is known of a line that nobody parses."""

import json
from typing import Any

import orjson
import pytest
from roost.server.features.batches.batch_lines import LineError, leading_custom_id, parse_line, parse_measured
from roost.server.http.json_limits import MAX_CONTAINERS, size_of


def line(**fields: Any) -> bytes:
    return json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}} | fields).encode()


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (line(body={"prompt": "b" * 9000}), "the line is longer than 8292 bytes, as --max-body-bytes is 100"),
        (line(body={"prompt": "b" * 200}), "body is longer than --max-body-bytes, 100"),
        (line(body={"prompt": nested(300)}), "body is nested too deeply"),
        (line(method=nested(300)), 'method must be "POST", got a value that is nested too deeply'),
    ],
)
def test_a_line_that_no_server_would_run_is_an_error(raw: bytes, message: str) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(raw, 1, 100)
    assert (str(caught.value), caught.value.custom_id) == (message, "a")


def test_a_line_has_as_many_arrays_and_objects_as_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is parsed: millions of empty arrays take seconds."""
    raw = line(body={"prompt": [[]] * MAX_CONTAINERS})
    loads = orjson.loads
    parsed: list[bytes] = []
    monkeypatch.setattr("orjson.loads", lambda text: (parsed.append(text), loads(text))[1])
    with pytest.raises(LineError, match="more than 131072 arrays and objects"):
        parse_line(raw, 1)
    assert parsed == [b'"a"']


def test_a_line_is_measured_as_a_body_is() -> None:
    body = {"prompt": [300, 400, 500], "user": "some user"}
    parsed, num_bytes = parse_measured(line(body=body), 7, 1000)
    assert (parsed.number, json.loads(parsed.body)) == (7, body)
    assert num_bytes == size_of(orjson.loads(parsed.body))


@pytest.mark.parametrize(
    ("raw", "custom_id"),
    [
        (line(), "a"),
        (line(custom_id='quo"ted \u00e9'), 'quo"ted \u00e9'),
        (b'\t{\n"custom_id" :"cut", "body": [[[', "cut"),
        (line(custom_id="long" * 200), None),
        (line(custom_id=5), None),
        (b'{"custom_id": "\\q"}', None),
        (b'{"custom_id": "' + b"a" * 2**20, None),
        (b'{"method": "POST", "custom_id": "b"}', None),
        (b"", None),
    ],
)
def test_the_id_that_a_line_begins_with(raw: bytes, custom_id: str | None) -> None:
    assert leading_custom_id(raw) == custom_id
