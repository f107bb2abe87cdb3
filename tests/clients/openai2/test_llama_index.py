"""LlamaIndex through its class for servers with OpenAI's API."""

import asyncio

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from questions import ANSWER, QUESTION, City, weather
from server_process import API_KEY


@pytest.fixture
def llm(base_url: str) -> OpenAILike:
    return OpenAILike(
        model="demo",
        api_base=base_url,
        api_key=API_KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        temperature=0,
        max_tokens=200,
        max_retries=0,
    )


ASKED = [ChatMessage(role="system", content="Answer briefly."), ChatMessage(role="user", content=QUESTION)]


def test_chat(llm: OpenAILike) -> None:
    assert ANSWER in str(llm.chat(ASKED).message.content)


def test_stream(llm: OpenAILike) -> None:
    assert ANSWER in "".join(chunk.delta or "" for chunk in llm.stream_chat(ASKED))


def test_complete(llm: OpenAILike) -> None:
    assert ANSWER in llm.complete(QUESTION).text


def test_completions_api(base_url: str) -> None:
    llm = OpenAILike(model="demo", api_base=base_url, api_key=API_KEY, max_tokens=8, temperature=0)
    assert llm.complete("Once upon a time").text == "".join(
        chunk.delta or "" for chunk in llm.stream_complete("Once upon a time")
    )


@pytest.mark.parametrize("by_schema", [True, False])
def test_structured_output(llm: OpenAILike, by_schema: bool) -> None:
    """Covers structured output by a schema, and by a forced call, which is the default."""
    llm.should_use_structured_outputs = by_schema
    found = llm.as_structured_llm(City).chat([ChatMessage(role="user", content="Tell me of Madrid.")])
    assert isinstance(found.raw, City)


def test_tool(llm: OpenAILike) -> None:
    """Covers a call, the tool's result, and the response to it."""
    tool = FunctionTool.from_defaults(weather)
    asked = ChatMessage(role="user", content="How is the weather in Rome?")
    reply = llm.chat_with_tools([tool], chat_history=[asked], tool_required=True)
    calls = llm.get_tool_calls_from_response(reply)
    assert calls
    results = [
        ChatMessage(
            role="tool",
            content=str(tool(**call.tool_kwargs)),
            additional_kwargs={"tool_call_id": call.tool_id, "name": call.tool_name},
        )
        for call in calls
    ]
    assert all(str(result.content).startswith("It is sunny in ") for result in results)
    assert llm.chat([asked, reply.message, *results]).message.content


def test_agent(llm: OpenAILike) -> None:
    """The agent has to call a tool first."""
    agent = FunctionAgent(tools=[weather], llm=llm, initial_tool_choice="weather", streaming=True)

    async def run() -> list[ToolCallResult]:
        handler = agent.run("How is the weather in Rome?")
        events = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
        await handler
        return events

    results = asyncio.run(run())
    assert results
    assert all("It is sunny in " in str(result.tool_output) for result in results)
