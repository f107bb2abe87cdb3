"""Limits on a line of a batch file."""

import json
from typing import Any

import pytest
from pydantic_core import from_json
from roost.server.features.batches.batch_lines import LineError, TokenUsage, parse_line
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
    ("raw", "message", "custom_id"),
    [
        (line(body={"prompt": "b" * 9000}), "the line is longer than 8292 bytes, as --max-body-bytes is 100", None),
        (line(body={"prompt": "b" * 200}), "body is longer than --max-body-bytes, 100", "a"),
        (
            line(body={"prompt": nested(300)}),
            "the line is not valid JSON: recursion limit exceeded at line 1 column 282",
            None,
        ),
        (line(body={"seed": 10**30}), "body has a number beyond 64 bits, or is nested too deeply", "a"),
        (line(url="/v1/other"), None, "a"),
        (line(custom_id="long" * 200, body=[]), None, None),
    ],
)
def test_a_line_that_no_server_would_run_is_an_error(raw: bytes, message: str | None, custom_id: str | None) -> None:
    with pytest.raises(LineError) as caught:
        parse_line(raw, 1, 100)
    assert message in (None, str(caught.value))
    assert caught.value.custom_id == custom_id


def test_a_line_has_as_many_arrays_and_objects_as_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is parsed: millions of empty arrays take seconds."""
    raw = line(body={"prompt": [[]] * MAX_CONTAINERS})
    parsed: list[bytes] = []
    monkeypatch.setattr(json_limits, "from_json", lambda text, **_: (parsed.append(text), from_json(text))[1])
    with pytest.raises(LineError, match="at most 131072 arrays and objects"):
        parse_line(raw, 1)
    assert parsed == []


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
