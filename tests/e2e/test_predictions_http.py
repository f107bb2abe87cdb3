"""Predicted outputs and forced tokens over HTTP: the bundled model's responses are the same with and without them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_talk import CHUNK, turns
from server_process import launched

STEADY = str(Path(__file__).parent / "faulty_server.py")
DRAFTS = ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}')


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        launched("demo", "--slots", "2", "--prefill-chunk", str(CHUNK), *DRAFTS, program=(STEADY, "drafts")) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client


PERSON = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "maxLength": 9},
        "favourite_colour": {"enum": ["dark blue", "dark green"]},
        "age_in_years": {"type": "integer"},
    },
    "required": ["first_name", "favourite_colour", "age_in_years"],
}


def body_of(**fields: Any) -> dict[str, Any]:
    messages = turns("Tell me a story about a boat.")
    return {"messages": messages, "temperature": 0, "max_tokens": 90, "logprobs": True, "top_logprobs": 2, **fields}


def chat(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = client.post("/v1/chat/completions", json=body_of(**fields)).raise_for_status().json()
    return answer


def edited(text: str) -> dict[str, Any]:
    """Returns a text as a prediction, with other words now and then."""
    words = [word if place % 12 != 4 else f"very {word[::-1]}" for place, word in enumerate(text.split(" "))]
    return {"type": "content", "content": " ".join(words)}


def counts(usage: dict[str, Any]) -> tuple[int, int]:
    """Returns the accepted and the rejected tokens of predictions."""
    details = usage["completion_tokens_details"]
    return details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]


@pytest.mark.parametrize("fields", [{}, {"n": 3, "temperature": 0.3, "seed": 5}])
def test_a_prediction_changes_no_response(client: httpx.Client, fields: dict[str, Any]) -> None:
    plain = chat(client, **fields)
    prediction = edited(plain["choices"][0]["message"]["content"])
    predicted = chat(client, prediction=prediction, **fields)
    assert predicted["choices"] == plain["choices"]
    assert counts(plain["usage"]) == (0, 0)
    accepted, _ = counts(predicted["usage"])
    assert 0 < accepted < predicted["usage"]["completion_tokens"]
    assert predicted["usage"]["total_tokens"] == plain["usage"]["total_tokens"]


def test_a_stream_has_the_same_text_and_counts(client: httpx.Client) -> None:
    text = chat(client)["choices"][0]["message"]["content"]
    fields = {"stream": True, "stream_options": {"include_usage": True}, "prediction": edited(text)}
    response = client.post("/v1/chat/completions", json=body_of(**fields)).raise_for_status()
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"]) == text
    accepted, _ = counts(events[-1]["usage"])
    assert accepted > 0


def test_a_prediction_without_a_match_and_one_with_stop_strings_count_nothing(client: httpx.Client) -> None:
    plain = chat(client)
    text = plain["choices"][0]["message"]["content"]
    useless = chat(client, prediction={"type": "content", "content": "1 2 3 4 5 6 7 8 9"})
    assert useless["choices"] == plain["choices"]
    assert counts(useless["usage"])[0] == 0
    stopping = chat(client, prediction=edited(text), stop="no such text")
    assert stopping["choices"] == plain["choices"]
    assert counts(stopping["usage"]) == (0, 0)


def drafted(client: httpx.Client) -> tuple[int, int]:
    """Returns the numbers of drafted and of accepted tokens so far."""
    page = client.get("/metrics").text
    names = ("draft_tokens", "accepted_tokens")
    found = (re.search(rf"^roost_spec_decode_num_{name}_total (\S+)$", page, re.MULTILINE) for name in names)
    tokens, accepted = (int(float(each[1])) for each in found if each)
    return tokens, accepted


@pytest.mark.parametrize("fields", [{}, {"n": 2, "temperature": 1.0, "seed": 5}])
def test_forced_tokens_are_drafted_and_change_no_response(client: httpx.Client, fields: dict[str, Any]) -> None:
    """With a stop string, tokens come one by one."""
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    before = drafted(client)
    plain = chat(client, response_format=form, stop="no such text", **fields)
    assert drafted(client) == before
    answer = chat(client, response_format=form, prediction={"type": "content", "content": "{"}, **fields)
    assert answer["choices"] == plain["choices"]
    tokens, accepted = drafted(client)
    assert tokens - before[0] == accepted - before[1] > 10
    assert counts(answer["usage"]) == (0, 0)
