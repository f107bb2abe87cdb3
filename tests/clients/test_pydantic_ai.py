"""pydantic-ai with its three models: chat completions, responses, and Anthropic's messages."""

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelSettings, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from questions import ANSWER, QUESTION, City, Place, weather
from server_process import API_KEY, ServerProcess

SETTINGS = ModelSettings(temperature=0, max_tokens=200)


@pytest.fixture(params=["chat", "responses", "messages"])
def model(request: pytest.FixtureRequest, server: ServerProcess) -> Model:
    """Model of the demo server through one of the APIs."""
    openai = OpenAIProvider(base_url=f"{server.url}/v1", api_key=API_KEY)
    match request.param:
        case "chat":
            return OpenAIChatModel("demo", provider=openai)
        case "responses":
            return OpenAIResponsesModel("demo", provider=openai)
    anthropic = AnthropicProvider(base_url=server.url, api_key=API_KEY)
    return AnthropicModel("demo", provider=anthropic, profile={"supports_json_schema_output": True})


@pytest.fixture
def chat_model(server: ServerProcess) -> Model:
    return OpenAIChatModel("demo", provider=OpenAIProvider(base_url=f"{server.url}/v1", api_key=API_KEY))


class Loose(BaseModel):
    """Any object."""

    name: Any = None


def tool_results(messages: list[ModelMessage]) -> list[str]:
    """Returns the results of tools in a conversation."""
    return [part.content for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]


def test_chat(model: Model) -> None:
    run = Agent(model, instructions="Answer briefly.", model_settings=SETTINGS).run_sync(QUESTION)
    assert ANSWER in run.output
    assert run.usage.input_tokens > 0
    assert run.usage.output_tokens > 0


def test_stream(model: Model) -> None:
    async def streamed() -> str:
        async with Agent(model, model_settings=SETTINGS).run_stream(QUESTION) as run:
            return "".join([text async for text in run.stream_text(delta=True, debounce_by=None)])

    assert ANSWER in asyncio.run(streamed())


def test_several_turns(model: Model) -> None:
    agent = Agent(model, model_settings=SETTINGS)
    first = agent.run_sync("My name is Anna.")
    second = agent.run_sync("What is my name?", message_history=first.all_messages())
    assert len(second.all_messages()) == 4
    assert second.output


@pytest.mark.parametrize("kind", [ToolOutput, NativeOutput])
def test_structured_output(model: Model, kind: type) -> None:
    schema = Place if kind is NativeOutput and isinstance(model, AnthropicModel) else City
    run = Agent(model, output_type=kind(schema), model_settings=SETTINGS).run_sync("Tell me of Madrid.")
    assert isinstance(run.output, schema)


def test_prompted_output(chat_model: Model) -> None:
    """The schema is in the prompt, and JSON mode guarantees only an object."""
    run = Agent(chat_model, output_type=PromptedOutput(Loose), model_settings=SETTINGS).run_sync("Tell me of Madrid.")
    assert isinstance(run.output, Loose)


def test_streamed_structured_output(model: Model) -> None:
    async def parts() -> list[City]:
        async with Agent(model, output_type=City, model_settings=SETTINGS).run_stream("Tell me of Rome.") as run:
            return [part async for part in run.stream_output(debounce_by=None)]

    assert isinstance(asyncio.run(parts())[-1], City)


def test_tool(model: Model) -> None:
    """The first step has to call the tool, and the second to respond with its result."""

    def settings(run: RunContext[None]) -> ModelSettings:
        return ModelSettings(**SETTINGS, tool_choice="none" if tool_results(run.messages) else ["weather"])

    run = Agent(model, tools=[weather], model_settings=settings).run_sync("How is the weather in Rome?")
    results = tool_results(run.all_messages())
    assert results
    assert all(result.startswith("It is sunny in ") for result in results)
    assert run.output
