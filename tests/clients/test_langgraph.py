"""LangChain's agents and LangGraph over OpenAI's and Anthropic's APIs."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent
from pydantic import SecretStr
from questions import ANSWER, QUESTION, City, Place, weather
from server_process import API_KEY, ServerProcess

USER: Any = {"messages": [("user", QUESTION)]}


@pytest.fixture(params=["chat", "responses", "messages"])
def model(request: pytest.FixtureRequest, server: ServerProcess) -> BaseChatModel:
    """Model of the demo server through one of the APIs."""
    key = SecretStr(API_KEY)
    if request.param == "messages":
        return ChatAnthropic(
            model_name="demo", base_url=server.url, api_key=key, temperature=0, max_tokens_to_sample=200, max_retries=0
        )
    return ChatOpenAI(
        model="demo",
        base_url=f"{server.url}/v1",
        api_key=key,
        temperature=0,
        max_completion_tokens=200,
        max_retries=0,
        use_responses_api=request.param == "responses",
    )


def test_chat(model: BaseChatModel) -> None:
    reply = model.invoke([SystemMessage("Answer briefly."), HumanMessage(QUESTION)])
    assert ANSWER in reply.text
    assert isinstance(reply, AIMessage)
    assert reply.usage_metadata
    assert reply.usage_metadata["output_tokens"] > 0


def test_stream(model: BaseChatModel) -> None:
    assert ANSWER in "".join(chunk.text for chunk in model.stream(QUESTION))


@pytest.mark.parametrize("model", ["chat", "responses"], indirect=True)
def test_system_message_alone(model: BaseChatModel) -> None:
    """Only OpenAI's APIs accept this: `messages` of Anthropic's cannot be empty."""
    assert model.invoke([SystemMessage(QUESTION)]).text


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output(model: BaseChatModel, method: str) -> None:
    """Each package has its own default; users choose among these."""
    schema = Place if method == "json_schema" and isinstance(model, ChatAnthropic) else City
    found = model.with_structured_output(schema, method=method).invoke("Tell me of Madrid.")
    assert isinstance(found, schema)


def test_graph(model: BaseChatModel) -> None:
    """The agent calls a tool, runs it, and responds: the graph of LangGraph's first page."""
    forced = model.bind_tools([tool(weather)], tool_choice="weather")

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [forced.invoke(state["messages"])]}

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph: Any = StateGraph(MessagesState)
    for name, node in (("ask", ask), ("tools", ToolNode([tool(weather)])), ("answer", answer)):
        graph.add_node(name, node)
    for start, end in ((START, "ask"), ("ask", "tools"), ("tools", "answer"), ("answer", END)):
        graph.add_edge(start, end)
    messages = graph.compile().invoke({"messages": [("user", "How is the weather in Rome?")]})["messages"]
    results = [message.text for message in messages if isinstance(message, ToolMessage)]
    assert results
    assert all(result.startswith("It is sunny in ") for result in results)
    assert isinstance(messages[-1], AIMessage)


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_agent_with_structured_output(model: BaseChatModel, strategy: Any) -> None:
    schema = Place if strategy is ProviderStrategy and isinstance(model, ChatAnthropic) else City
    state = create_agent(model, tools=[], response_format=strategy(schema)).invoke(USER)
    assert isinstance(state["structured_response"], schema)


def test_react_agent_with_response_format(model: BaseChatModel) -> None:
    """The older agent sends the assistant's response as the last message."""
    state = create_react_agent(model, tools=[weather], response_format=City).invoke(USER)
    assert isinstance(state["structured_response"], City)


def test_agent_with_memory(model: BaseChatModel) -> None:
    agent = create_agent(model, tools=[weather], system_prompt="Answer briefly.", checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    for text in ("My name is Anna.", "What is my name?"):
        state = agent.invoke({"messages": [("user", text)]}, thread)
    assert len(state["messages"]) == 4


def test_agent_streams_tokens(model: BaseChatModel) -> None:
    agent = create_agent(model, tools=[weather])
    texts = [chunk.text for chunk, _ in agent.stream(USER, stream_mode="messages")]
    assert ANSWER in "".join(texts)
