"""Parameters are checked when they are made."""

from typing import Any

import pytest
import roost
from roost import RequestError, SamplingParams, StructuredOutputsParams
from roost.server.llm.requests import chat_fields, conversations_of


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": "hot"}, 'temperature must be a number, got "hot"'),
        ({"max_tokens": "16"}, 'max_tokens must be a whole number, got "16"'),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, got 1.5"),
        ({"top_p": 2}, "top_p must be at most 1, got 2"),
        ({"stop": 5}, "stop must be a string or an array of strings, got 5"),
        ({"stop_token_ids": ["a"]}, 'stop_token_ids[0] must be a whole number, got "a"'),
        ({"seed": "x"}, 'seed must be a whole number, got "x"'),
        ({"ignore_eos": "yes"}, 'ignore_eos must be true or false, got "yes"'),
        ({"logit_bias": [5]}, "logit_bias must be an object, got an array"),
        ({"structured_outputs": StructuredOutputsParams(regex=5)}, "structured_outputs.regex must be a string, got 5"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_or_value_is_refused_at_once(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert str(caught.value) == message
    assert caught.value.param == next(iter(params))


def test_a_value_may_be_changed_later() -> None:
    params = SamplingParams(temperature=0.5)
    params.max_tokens = 8
    assert params.body_fields() == {"n": 1, "temperature": 0.5, "max_tokens": 8}


@pytest.mark.parametrize(
    ("given", "found"), [({}, "none"), ({"json": {}, "regex": "a"}, "json and regex"), ({"json_object": True}, None)]
)
def test_a_constraint_is_one(given: dict[str, Any], found: str | None) -> None:
    if found is None:
        StructuredOutputsParams(**given)
        return
    with pytest.raises(RequestError, match=f"exactly one of json, regex, choice, grammar, json_object, got {found}"):
        StructuredOutputsParams(**given)


@pytest.mark.parametrize("messages", ["hello", ["hello"], [5]])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(RequestError, match="messages must be an array"):
        [chat_fields(each, SamplingParams(), {}) for each in conversations_of(messages)]


def test_public_errors_show_their_public_names() -> None:
    for name in ("RoostError", "RequestError", "ConfigError", "CheckpointError", "StateFileError", "EngineDeadError"):
        error = getattr(roost, name)
        assert f"{error.__module__}.{error.__name__}" == f"roost.{name}"
    assert {*roost.__all__} <= {*dir(roost)}
