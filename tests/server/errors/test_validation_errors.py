"""What is wrong with a value is said in words that name the field, the value and what is accepted."""

from typing import Any

import httpx
import orjson
import pytest

HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PYDANTIC = ("Input should", "valid ", "after validation", "Field required", "not permitted", "instance of")
"""Words of the library's own messages."""


async def message(client: httpx.AsyncClient, path: str, **fields: Any) -> str:
    base = {CHAT: {"messages": HI}, "/v1/responses": {"input": "hi"}}.get(path, {})
    response = await client.post(path, json=base | fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    text = error["message"]
    assert isinstance(text, str)
    assert "\n" not in text
    assert not any(word in text for word in PYDANTIC), text
    return text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, "messages must have at least 1 entry, got 0"),
        ({"messages": "x"}, 'messages must be an array, got "x"'),
        ({"messages": [1]}, "messages[0] must be an object, got 1"),
        ({"messages": [{"content": "x"}]}, "messages[0].role is required"),
        ({"temperature": 3}, "temperature must be at most 2, got 3"),
        ({"temperature": "hot"}, 'temperature must be a number, got "hot"'),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": 1.5}, "n must be a whole number, got 1.5"),
        ({"n": 10**30}, "n must be at most 128, got a value of the type int"),
        ({"stream": "yes"}, 'stream must be true or false, got "yes"'),
        ({"stop": [""]}, "stop[0] must have at least 1 character, got 0"),
        ({"stop": ["a"] * 65}, "stop must have at most 64 entries, got 65"),
        ({"logit_bias": {"5": 200}}, "logit_bias.5 must be at most 100, got 200"),
        ({"logit_bias": {"a\nb": 200}}, "logit_bias.'a\\nb' must be at most 100, got 200"),
        ({"tool_choice": "must"}, 'tool_choice must be "none", "auto" or "required", got "must"'),
        ({"response_format": {"type": "xml" * 100}}, '"json_object" or "json_schema", got "xmlxml'),
        ({"structured_outputs": {"x": 1}}, "structured_outputs.x is unknown"),
        (
            {"response_format": {"type": "text", "json_schema": {"schema": {}}}},
            "response_format: the type text takes no schema: use the type json_schema",
        ),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        (
            {"messages": [*HI, {"role": "tool", "content": "x"}]},
            "messages: a message of the role 'tool' needs tool_call_id",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
            "tools: several functions have the name 'f'",
        ),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be an object, got an array"),
    ],
)
async def test_chat(client: httpx.AsyncClient, fields: dict[str, Any], expected: str) -> None:
    assert expected in await message(client, CHAT, **fields)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ({}, "prompt must be a string, a non-empty array of token ids, or a non-empty array of either, got {}"),
        ([-1], "prompt[0] must be at least 0, got -1"),
        ([[4], []], "prompt[1] must have at least 1 entry, got 0"),
        ([4, "a"], 'prompt[1] must be a whole number, got "a"'),
        (None, "prompt is required"),
    ],
)
async def test_completions(client: httpx.AsyncClient, prompt: Any, expected: str) -> None:
    assert await message(client, COMPLETIONS, prompt=prompt) == expected


async def test_the_number_of_choices_is_named(client: httpx.AsyncClient) -> None:
    text = await message(client, COMPLETIONS, prompt=["a"] * 100, n=128)
    assert text.startswith("one request may ask for at most ")
    assert text.endswith(" choices (prompts times n), got 12800")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"a": 5}, "metadata.a must be a string, got 5"),
        ({f"{number}": "v" for number in range(17)}, "metadata must have at most 16 entries, got 17"),
        ({"n" * 65: "v"}, f"metadata.{'n' * 60} must have at most 64 characters, got 65"),
        ({"a": "v" * 513}, "metadata.a must have at most 512 characters, got 513"),
    ],
)
async def test_metadata(client: httpx.AsyncClient, metadata: dict[str, Any], expected: str) -> None:
    assert await message(client, "/v1/responses", metadata=metadata) == expected


async def test_what_a_union_of_objects_takes(client: httpx.AsyncClient) -> None:
    text = await message(client, "/v1/responses", text={"format": {"type": "json_object", "schema": {}}})
    assert text == "text.format: the type json_object takes no schema: use the type json_schema"


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", "the body is required"),
        (b"[]", "application/json", "the body must be an object, got []"),
        (b'{"prompt": "a"}', "text/plain", "send the body as JSON, with Content-Type: application/json"),
        (
            orjson.dumps({f"f{number}": 1 for number in range(257)}),
            "application/json",
            "the body: an object has 257 fields, and at most 256 are allowed",
        ),
    ],
    ids=["none", "array", "text", "many fields"],
)
async def test_a_body_that_is_refused_as_a_whole(
    client: httpx.AsyncClient, body: bytes, content_type: str, message: str
) -> None:
    response = await client.post("/v1/completions", content=body, headers={"content-type": content_type})
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)
    assert response.json()["error"]["param"] is None
