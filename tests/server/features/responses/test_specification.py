"""Objects and events of responses have the fields that the specification of Open Responses requires."""

from typing import Any

import httpx
import pytest
from client_types import events

type Shape = dict[str, type | tuple[type, ...]]

NUMBER, OPTIONAL = (int, float), (str, type(None))
PLACE: Shape = {"item_id": str, "output_index": int}
TEXT_PLACE: Shape = {**PLACE, "content_index": int}
LOGPROB: Shape = {"token": str, "logprob": NUMBER, "bytes": list}

EVENTS: dict[str, Shape] = {
    **{f"response.{status}": {"response": dict} for status in ("created", "in_progress", "completed", "incomplete")},
    **{f"response.output_item.{step}": {"output_index": int, "item": dict} for step in ("added", "done")},
    **{f"response.content_part.{step}": {**TEXT_PLACE, "part": dict} for step in ("added", "done")},
    "response.output_text.delta": {**TEXT_PLACE, "delta": str, "logprobs": list},
    "response.output_text.done": {**TEXT_PLACE, "text": str, "logprobs": list},
    "response.function_call_arguments.delta": {**PLACE, "delta": str},
    "response.function_call_arguments.done": {**PLACE, "name": str, "arguments": str},
}
ITEMS: dict[str, Shape] = {
    "message": {"id": str, "status": str, "role": str, "content": list},
    "function_call": {"id": str, "status": str, "call_id": str, "name": str, "arguments": str},
}
RESPONSE = {
    *("id", "object", "created_at", "completed_at", "status", "error", "incomplete_details", "background", "store"),
    *("model", "previous_response_id", "instructions", "output", "usage", "metadata", "truncation", "text"),
    *("tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "max_output_tokens", "service_tier"),
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "reasoning"),
    *("safety_identifier", "prompt_cache_key"),
}
"""Required fields of a response (openresponses.org)."""

PART: Shape = {"text": str, "annotations": list, "logprobs": list}
FORMATS: dict[str, Shape] = {
    "text": {},
    "json_schema": {"name": str, "description": OPTIONAL, "schema": dict, "strict": bool},
}

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}
TOOL = {"type": "function", "name": "f", "parameters": SCHEMA}
CASES: dict[str, dict[str, Any]] = {
    "text": {},
    "log-probabilities": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "a call": {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 200},
    "a schema": {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "max_output_tokens": 200},
}


def check(value: dict[str, Any], shape: Shape) -> None:
    """Checks that a value has all fields of a shape, each of its type."""
    assert value.keys() >= shape.keys(), value
    wrong = {name: value[name] for name, kind in shape.items() if not isinstance(value[name], kind)}
    assert not wrong, value


def check_logprobs(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        check(entry, {**LOGPROB, "top_logprobs": list})
        for alternative in entry["top_logprobs"]:
            check(alternative, LOGPROB)


def check_item(item: dict[str, Any]) -> None:
    check(item, ITEMS[item["type"]])
    for part in item.get("content", ()):
        check(part, PART)
        check_logprobs(part["logprobs"])


def check_response(response: dict[str, Any]) -> None:
    assert response.keys() >= RESPONSE
    shown = response["text"]["format"]
    check(shown, FORMATS[shown["type"]])
    for item in response["output"]:
        check_item(item)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
async def test_a_response_and_its_events_have_all_required_fields(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    body = {"input": [{"type": "message", "role": "user", "content": "hi"}], "max_output_tokens": 3, **fields}
    check_response((await client.post("/v1/responses", json=body)).json())
    got = events((await client.post("/v1/responses", json={**body, "stream": True})).text)
    assert [event["sequence_number"] for _, event in got] == list(range(len(got)))
    for name, event in got:
        check(event, EVENTS[name])
        check_logprobs(event.get("logprobs", []))
        if "item" in event:
            check_item(event["item"])
        if "response" in event:
            check_response(event["response"])
    for name, (kind, event) in zip(("created", "in_progress"), got, strict=False):
        assert kind == f"response.{name}"
        assert (event["response"]["status"], event["response"]["completed_at"]) == ("in_progress", None)
