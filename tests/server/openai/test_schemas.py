"""Values that a request may have, and the field that is named where it may not."""

from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from roost.server.generation.requests import chat_conversation
from roost.server.openai.completions import ChatBody
from roost.server.schemas.body import MAX_MESSAGES

HI = [{"role": "user", "content": "hi"}]


async def post(client: httpx.AsyncClient, kind: str, **fields: Any) -> httpx.Response:
    path = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}[kind]
    given = {"messages": HI, "max_tokens": 2} if kind == "chat" else {"prompt": "a", "max_tokens": 2}
    return await client.post(path, json={**given, **fields})


# What else is wrong is in tests/server/errors/test_validation_errors.py, with its message.
BOTH: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("top_p", -0.1),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 1.5),
    ("min_p", 2),
    ("typical_p", 0),
    ("typical_p", 1e-40),
    ("n", 129),
    ("n", True),
    ("seed", "x"),
    ("seed", 1.5),
    ("stop", 5),
    ("stop", ""),
    ("stop", ["a", 5]),
    ("stop_token_ids", [512]),
    ("stop_token_ids", [-1]),
    ("stop_token_ids", list(range(70))),
    ("stop_token_ids", list(range(64))),
    ("stop_token_ids", [5] * 65),
    ("min_tokens", -1),
    ("min_tokens", 3),
    ("max_tokens", -1),
    ("max_tokens", "2"),
    ("max_tokens", 2**31),
    ("model", 5),
    ("logprobs", "x"),
    ("ignore_eos", 1),
    ("frequency_penalty", 2.5),
    ("presence_penalty", "1"),
    ("repetition_penalty", 0),
    ("repetition_penalty", 1e-40),
    ("repetition_penalty", 10.5),
    ("logit_bias", {str(i): 1 for i in range(301)}),
    ("logit_bias", [5]),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [512]),
    ("bad_words", [""]),
    ("bad_words", "x"),
    ("bad_words", ["\u00e9" * 1500]),
    ("prediction", "x"),
    ("prediction", []),
    ("prediction", {"content": "x"}),
    ("prediction", {"type": "text", "content": "x"}),
    ("prediction", {"type": "content"}),
    ("prediction", {"type": "content", "content": 5}),
    ("prediction", {"type": "content", "content": {"type": "text", "text": "x"}}),
    ("prediction", {"type": "content", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
    ("prediction", {"type": "content", "content": [{"type": "text", "text": "x"}] * (MAX_MESSAGES + 1)}),
    # known, and not there yet
    ("tools", [{"type": "function"}]),
    ("suffix", "x"),
]

CHAT: list[tuple[str, Any]] = [
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": None}]),
    ("messages", [{"role": "user", "content": 5}]),
    ("messages", [*HI, {"role": "assistant", "content": None, "tool_calls": [{}]}, *HI]),
    ("max_tokens", 0),
    ("max_completion_tokens", 0),
    ("top_logprobs", 2),
    ("logprobs", 1),
]

COMPLETION: list[tuple[str, Any]] = [
    ("prompt", []),
    ("prompt", [[]]),
    ("prompt", 5),
    ("prompt", ["a", 4]),
    ("prompt", [4, 512]),
    ("prompt", [[4], [512]]),
    ("prompt", [True]),
    ("prompt", ["a"] * 257),
    ("logprobs", 21),
    ("logprobs", True),
    ("echo", "yes"),
]


@pytest.mark.parametrize(
    ("kind", "param", "value"),
    [*(("chat", *case) for case in (*BOTH[::10], *CHAT)), *(("completion", *case) for case in BOTH + COMPLETION)],
)
async def test_a_bad_value_is_a_400_that_names_it(
    client: httpx.AsyncClient, engine: FakeEngine, kind: str, param: str, value: Any
) -> None:
    response = await post(client, kind, **{param: value})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert "\n" not in error["message"]
    assert not engine.requests


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("messages[1].content[0].type", {"messages": [*HI, {"role": "user", "content": [{"type": "x"}]}]}),
        ("stop[1]", {"stop": ["a", ""]}),
        ("prediction must be an object", {"prediction": "x"}),
        ("prediction.content must be a string or an array of parts", {"prediction": {"type": "content", "content": 5}}),
        (
            "prediction.content[0].text must be a string",
            {"prediction": {"type": "content", "content": [{"type": "text", "text": 5}]}},
        ),
        ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 5}}),
    ],
)
async def test_the_message_says_where(client: httpx.AsyncClient, message: str, fields: dict[str, Any]) -> None:
    assert (await post(client, "chat", **fields)).json()["error"]["message"].startswith(message)


HARMLESS: dict[str, Any] = {
    "store": True,
    "metadata": {"a": "b"},
    "user": "u",
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "modalities": ["text"],
    "reasoning_effort": "low",
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "best_of": 1,
    "something_new": 5,
}


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize(
    "fields",
    [
        HARMLESS,
        dict.fromkeys({*ChatBody.model_fields, *HARMLESS} - {"messages"}) | {"max_tokens": 2},
        {"top_k": -1, "top_p": 1, "min_p": 0, "temperature": 2, "seed": -(2**70)},
        {"stop": ["1", "2", "3", "4", "5", "6"]},
    ],
)
async def test_harmless_values_are_taken(client: httpx.AsyncClient, kind: str, fields: dict[str, Any]) -> None:
    assert (await post(client, kind, **fields)).status_code == 200


async def test_a_named_service_tier_is_answered(client: httpx.AsyncClient) -> None:
    assert (await post(client, "chat", service_tier="auto")).json()["service_tier"] == "default"
    assert "service_tier" not in (await post(client, "chat")).json()


def test_parts_of_text_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": parts}]})
    assert chat_conversation(body).messages[0].content == ("a", "b")


@pytest.mark.parametrize(
    ("content", "texts"), [(None, ("no",)), ("a", ("a", "no")), ([{"type": "text", "text": "a"}], ("a", "no"))]
)
def test_a_refusal_is_the_last_part_of_a_message(content: Any, texts: tuple[str, ...]) -> None:
    message = {"role": "assistant", "content": content, "refusal": "no"}
    assert chat_conversation(ChatBody.model_validate({"messages": [*HI, message]})).messages[1].content == texts
