"""DSPy, whose adapters ask in text, in JSON mode and by schema."""

from typing import Any, Literal

import dspy
import pytest
from questions import ANSWER, QUESTION, weather
from server_process import API_KEY


def build(base_url: str, **options: Any) -> dspy.LM:
    """The model as DSPy's documentation says to set up servers of one's own."""
    return dspy.LM(
        "openai/demo", api_base=base_url, api_key=API_KEY, temperature=0, max_tokens=200, cache=False, **options
    )


class Country(dspy.Signature):
    """Tell which country a city is in."""

    city: str = dspy.InputField()
    country: Literal["Spain", "France", "Italy"] = dspy.OutputField()
    is_capital: bool = dspy.OutputField()


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_chat(base_url: str, kind: Any) -> None:
    (text,) = build(base_url, model_type=kind)(messages=[{"role": "user", "content": QUESTION}])
    assert ANSWER in (text["text"] if isinstance(text, dict) else text)


def test_completion(base_url: str) -> None:
    assert build(base_url, model_type="text")(prompt=QUESTION)


def test_signature(base_url: str) -> None:
    """DSPy's JSON adapter makes a schema of the signature."""
    with dspy.context(lm=build(base_url), adapter=dspy.JSONAdapter()):
        found = dspy.Predict(Country)(city="Rome")
    assert found.country in ("Spain", "France", "Italy")
    assert isinstance(found.is_capital, bool)


def test_chat_adapter_falls_back_to_the_schema(base_url: str) -> None:
    """A small model does not keep to the marks that the default adapter asks for; DSPy then asks by schema."""
    with dspy.context(lm=build(base_url), adapter=dspy.ChatAdapter()):
        found = dspy.Predict(Country)(city="Rome")
    assert found.country in ("Spain", "France", "Italy")


def test_chain_of_thought(base_url: str) -> None:
    with dspy.context(lm=build(base_url), adapter=dspy.JSONAdapter()):
        found = dspy.ChainOfThought("question -> answer: bool")(question="Is Rome a city?")
    assert isinstance(found.answer, bool)


def test_tool(base_url: str) -> None:
    """A native call: DSPy hands the schema of its tools on and parses the calls."""
    tools = [dspy.Tool(weather).format_as_litellm_function_call()]
    (made,) = build(base_url)(
        messages=[{"role": "user", "content": "How is the weather in Rome?"}], tools=tools, tool_choice="required"
    )
    assert made["tool_calls"][0].function.name == "weather"
