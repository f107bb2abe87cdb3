"""DSPy, whose adapters request text and structured output."""

from collections.abc import Iterator
from typing import Any, Literal

import dspy
import pytest
from dspy.lm15 import (
    AccessPolicy,
    ModelSupport,
    OpenAIChatCompat,
    ProviderDefinition,
    register_provider,
    unregister_provider,
)
from questions import ANSWER, QUESTION, weather
from server_process import API_KEY


def build(base_url: str, **options: Any) -> dspy.LM:
    """Model set up as in DSPy's documentation for custom servers."""
    return dspy.LM(
        "openai/demo", api_base=base_url, api_key=API_KEY, temperature=0, max_tokens=200, cache=False, **options
    )


class Country(dspy.Signature):
    """Tell which country a city is in."""

    city: str = dspy.InputField()
    country: Literal["Spain", "France", "Italy"] = dspy.OutputField()
    is_capital: bool = dspy.OutputField()


@pytest.fixture
def registered(base_url: str) -> Iterator[dspy.LM]:
    """Model that DSPy treats as able to use schemas, which it does not assume of unknown models."""
    access = AccessPolicy(provider="roost", env_keys=("ROOST_API_KEY",), base_url=base_url)
    supports = ModelSupport(response_schema=True, function_calling=True)
    register_provider(ProviderDefinition.chat(access, compat=OpenAIChatCompat()), supports=supports)
    yield dspy.LM("roost/demo", api_key=API_KEY, temperature=0, max_tokens=200, cache=False)
    unregister_provider("roost")


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_chat(base_url: str, kind: Any) -> None:
    (text,) = build(base_url, model_type=kind)(messages=[{"role": "user", "content": QUESTION}])
    assert ANSWER in (text["text"] if isinstance(text, dict) else text)


def test_completion(base_url: str) -> None:
    assert build(base_url, model_type="text")(prompt=QUESTION)


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter, dspy.ChatAdapter])
def test_signature(registered: dspy.LM, adapter: Any) -> None:
    """The JSON adapter sends a schema. The chat adapter falls back to it, since a small model forgets its marks."""
    with dspy.context(lm=registered, adapter=adapter()):
        found = dspy.Predict(Country)(city="Rome")
    assert found.country in ("Spain", "France", "Italy")
    assert isinstance(found.is_capital, bool)


def test_chain_of_thought(registered: dspy.LM) -> None:
    with dspy.context(lm=registered, adapter=dspy.JSONAdapter()):
        found = dspy.ChainOfThought("question -> answer: bool")(question="Is Rome a city?")
    assert isinstance(found.answer, bool)


def test_tool(base_url: str) -> None:
    """DSPy sends the schemas of its tools and parses the native calls."""
    tools = [dspy.Tool(weather).format_as_litellm_function_call()]
    (made,) = build(base_url)(
        messages=[{"role": "user", "content": "How is the weather in Rome?"}], tools=tools, tool_choice="required"
    )
    assert made["tool_calls"][0].function.name == "weather"
