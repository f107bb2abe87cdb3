"""smolagents: its model, and its tool-calling agent."""

from typing import Any

import pytest
from questions import ANSWER, QUESTION, City
from server_process import API_KEY
from smolagents import ChatMessage, MessageRole, OpenAIServerModel, ToolCallingAgent, tool
from smolagents.agents import AgentMaxStepsError
from smolagents.memory import ActionStep


@tool
def weather(city: str) -> str:
    """Returns the weather in a city.

    Args:
        city: The city to look at.
    """
    return f"It is sunny in {city}."


@pytest.fixture
def model(base_url: str) -> OpenAIServerModel:
    return OpenAIServerModel("demo", api_base=base_url, api_key=API_KEY, temperature=0, max_tokens=200)


ASKED = [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": QUESTION}])]


def test_chat(model: OpenAIServerModel) -> None:
    reply = model.generate(ASKED)
    assert ANSWER in str(reply.content)
    assert reply.token_usage is not None
    assert reply.token_usage.output_tokens > 0


def test_stream(model: OpenAIServerModel) -> None:
    assert ANSWER in "".join(delta.content or "" for delta in model.generate_stream(ASKED))


def test_structured_output(model: OpenAIServerModel) -> None:
    schema = {"name": "city", "schema": City.model_json_schema(), "strict": False}
    reply = model.generate(ASKED, response_format={"type": "json_schema", "json_schema": schema})
    City.model_validate_json(str(reply.content))


def test_stop_sequences(model: OpenAIServerModel) -> None:
    """The agents always send stop sequences."""
    assert ANSWER not in str(model.generate(ASKED, stop_sequences=[ANSWER]).content)


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calling_agent(model: OpenAIServerModel, streamed: bool) -> None:
    """The agent forces a call at each step; a small model may never make the final one, so steps are bounded."""
    agent = ToolCallingAgent(tools=[weather], model=model, max_steps=2, stream_outputs=streamed, verbosity_level=0)
    answer: Any = agent.run("How is the weather in Rome?")
    steps = [step for step in agent.memory.steps if isinstance(step, ActionStep)]
    assert answer is not None
    assert steps[0].tool_calls
    assert all(step.error is None or isinstance(step.error, AgentMaxStepsError) for step in steps)
