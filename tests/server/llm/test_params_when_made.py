"""Parameters are checked when they are made."""

from typing import Any

import pytest
import roost
from roost import RequestError, SamplingParams, StructuredOutputsParams
from roost.server.llm.requests import completion_fields


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": "hot"}, 'temperature must be a number, got "hot"'),
        ({"max_tokens": "16"}, 'max_tokens must be a whole number, got "16"'),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number, got 1.5"),
        ({"top_p": 2}, "top_p must be at most 1, got 2"),
        ({"stop": 5}, "stop must be a string or an array of strings, got 5"),
        ({"stop_token_ids": ["a"]}, 'stop_token_ids[0] must be a whole number, got "a"'),
        ({"seed": "x"}, 'seed must be a whole number, got "x"'),
        ({"ignore_eos": "yes"}, 'ignore_eos must be true or false, got "yes"'),
        ({"logit_bias": [5]}, "logit_bias must be an object, got an array"),
        ({"structured_outputs": StructuredOutputsParams(regex=5)}, "structured_outputs.regex must be a string, got 5"),  # type: ignore[arg-type]
        (
            {"output_kind": "delta"},
            "output_kind must be a RequestOutputKind, such as RequestOutputKind.DELTA, got 'delta'",
        ),
        ({"max_token": 5}, "SamplingParams has no argument 'max_token'; did you mean max_tokens?"),
    ],
)
def test_a_wrong_type_or_value_is_refused_at_once(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert str(caught.value) == message
    assert caught.value.param == next(iter(params))


def test_names_of_parameters_are_needed() -> None:
    with pytest.raises(RequestError, match=r"^SamplingParams takes names and values, such as max_tokens=…, got 5$"):
        SamplingParams(5)
    with pytest.raises(RequestError, match=r"^StructuredOutputsParams has no argument 'jsn'; did you mean json\?$"):
        StructuredOutputsParams(jsn={})  # type: ignore[call-arg]


def test_a_value_may_be_changed_later() -> None:
    params = SamplingParams(temperature=0.5)
    params.max_tokens = 8
    assert params.body_fields() == {"n": 1, "temperature": 0.5, "max_tokens": 8}
    params.max_tokens = 0
    with pytest.raises(RequestError, match=r"^max_tokens must be at least 1, got 0$"):
        completion_fields("a", params)


@pytest.mark.parametrize(
    ("given", "found"), [({}, "none"), ({"json": {}, "regex": "a"}, "json and regex"), ({"json_object": True}, None)]
)
def test_a_constraint_is_one(given: dict[str, Any], found: str | None) -> None:
    if found is None:
        StructuredOutputsParams(**given)
        return
    with pytest.raises(RequestError, match=f"exactly one of json, regex, choice, grammar, json_object, got {found}"):
        StructuredOutputsParams(**given)


def test_public_errors_show_their_public_names() -> None:
    for name in ("RoostError", "RequestError", "ConfigError", "CheckpointError", "StateFileError", "EngineDeadError"):
        error = getattr(roost, name)
        assert f"{error.__module__}.{error.__name__}" == f"roost.{name}"
    assert {*roost.__all__} <= {*dir(roost)}
