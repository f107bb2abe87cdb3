"""Limits on a line of a batch file, and what is known of a line that nobody parses."""

import json
from typing import Any

import pytest
from pydantic_core import from_json
from roost.server.features.batches.batch_lines import LineError, TokenUsage, leading_custom_id, parse_line
from roost.server.schemas import json_limits
from roost.server.schemas.json_limits import MAX_CONTAINERS


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
        (
            line(body={"prompt": nested(300)}),
            "the line has more than 201 arrays and objects within each other at line 1 column 282",
        ),
        (line(body={"seed": 10**30}), "body has a number beyond 64 bits, or is nested too deeply"),
    ],
)
def test_a_line_that_no_server_would_run_is_an_error(raw: bytes, message: str) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(raw, 1, 100)
    assert (str(caught.value), caught.value.custom_id) == (message, "a")


def test_a_line_has_as_many_arrays_and_objects_as_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is parsed: millions of empty arrays take seconds."""
    raw = line(body={"prompt": [[]] * MAX_CONTAINERS})
    parsed: list[bytes] = []
    monkeypatch.setattr(json_limits, "from_json", lambda text, **_: (parsed.append(text), from_json(text))[1])
    with pytest.raises(LineError, match="at most 131072 arrays and objects"):
        parse_line(raw, 1)
    assert parsed == [b'"a"']


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


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 0, 2)),
        ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}, (5, 3, 2)),
        ({"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 3}}, (5, 3, 2)),
        (
            {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 1},
            (5, 3, 2),
        ),
    ],
)
def test_tokens_are_counted_under_the_names_of_each_api(reported: Any, usage: Any) -> None:
    assert TokenUsage.of({"usage": reported}) == usage
