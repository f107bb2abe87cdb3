"""OpenAI's agents SDK with chat completions and responses."""

import asyncio

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    handoff,
)
from agents.items import ToolCallOutputItem
from agents.models.interface import Model
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from questions import ANSWER, QUESTION, City, weather
from server_process import API_KEY

SETTINGS = ModelSettings(temperature=0, max_tokens=200)


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def model(request: pytest.FixtureRequest, base_url: str) -> Model:
    """Model of the demo server through one of the APIs."""
    return request.param(model="demo", openai_client=AsyncOpenAI(base_url=base_url, api_key=API_KEY, max_retries=0))


def test_chat(model: Model) -> None:
    agent = Agent(name="Guide", instructions="Answer briefly.", model=model, model_settings=SETTINGS)
    run = Runner.run_sync(agent, QUESTION)
    assert ANSWER in run.final_output
    assert run.raw_responses[0].usage.output_tokens > 0


def test_stream(model: Model) -> None:
    agent = Agent(name="Guide", model=model, model_settings=SETTINGS)

    async def streamed() -> tuple[str, str]:
        run = Runner.run_streamed(agent, QUESTION)
        deltas = [
            event.data.delta
            async for event in run.stream_events()
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
        ]
        return "".join(deltas), run.final_output

    text, whole = asyncio.run(streamed())
    assert text == whole
    assert ANSWER in text


def test_structured_output(model: Model) -> None:
    agent = Agent(name="Guide", output_type=City, model=model, model_settings=SETTINGS)
    assert isinstance(Runner.run_sync(agent, "Tell me of Madrid.").final_output, City)


@pytest.mark.parametrize("streamed", [False, True])
def test_tool(model: Model, streamed: bool) -> None:
    """The SDK first requests with `required`, runs the tool, and sends its result with `auto`."""
    settings = SETTINGS.resolve(ModelSettings(tool_choice="required", parallel_tool_calls=False))
    agent = Agent(name="Guide", tools=[function_tool(weather)], model=model, model_settings=settings)

    async def run() -> list[str]:
        if not streamed:
            done = await Runner.run(agent, "How is the weather in Rome?", max_turns=5)
        else:
            done = Runner.run_streamed(agent, "How is the weather in Rome?", max_turns=5)
            async for _ in done.stream_events():
                pass
        assert isinstance(done.final_output, str)
        return [item.output for item in done.new_items if isinstance(item, ToolCallOutputItem)]

    results = asyncio.run(run())
    assert results
    assert all(result.startswith("It is sunny in ") for result in results)


def test_handoff(model: Model) -> None:
    """A hand-off is a tool without arguments."""
    settings = SETTINGS.resolve(ModelSettings(tool_choice="required"))
    guide = Agent(name="Guide", instructions="Answer briefly.", model=model, model_settings=SETTINGS)
    desk = Agent(name="Desk", handoffs=[handoff(guide)], model=model, model_settings=settings)
    run = Runner.run_sync(desk, QUESTION)
    assert run.last_agent is guide
    assert run.final_output


def test_session(model: Model) -> None:
    """The SDK sends the whole conversation again at each turn."""
    agent = Agent(name="Guide", model=model, model_settings=SETTINGS)
    session = SQLiteSession("one")

    async def turns() -> list[str]:
        return [
            (await Runner.run(agent, text, session=session)).final_output
            for text in ("My name is Anna.", "What is my name?")
        ]

    assert all(asyncio.run(turns()))
    assert len(asyncio.run(session.get_items())) == 4


def test_conversation(base_url: str) -> None:
    """The server keeps the session as a conversation: the SDK lists its items, and adds new ones."""
    client = AsyncOpenAI(base_url=base_url, api_key=API_KEY)
    model = OpenAIResponsesModel(model="demo", openai_client=client)
    agent = Agent(name="Guide", model=model, model_settings=SETTINGS)

    async def turns() -> tuple[str, int]:
        session = OpenAIConversationsSession(openai_client=client)
        await Runner.run(agent, "My name is Anna.", session=session)
        second = await Runner.run(agent, "What is my name?", session=session)
        return str(second.final_output), len(await session.get_items())

    text, num_items = asyncio.run(turns())
    assert text
    assert num_items == 4


def test_previous_response(base_url: str) -> None:
    """The server keeps the conversation, and the SDK sends an id."""
    model = OpenAIResponsesModel(model="demo", openai_client=AsyncOpenAI(base_url=base_url, api_key=API_KEY))
    agent = Agent(name="Guide", model=model, model_settings=SETTINGS)

    async def turns() -> str:
        first = await Runner.run(agent, "My name is Anna.")
        second = await Runner.run(agent, "What is my name?", previous_response_id=first.last_response_id)
        return str(second.final_output)

    assert asyncio.run(turns())
