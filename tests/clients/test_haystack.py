"""Haystack's generators for chat completions and for responses."""

from typing import Any

import pytest
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from questions import ANSWER, QUESTION, City, weather
from server_process import API_KEY

LIMITS = {OpenAIChatGenerator: "max_completion_tokens", OpenAIResponsesChatGenerator: "max_output_tokens"}


def build(kind: type, base_url: str, **options: Any) -> Any:
    """Returns a generator as a user sets it up."""
    fields = {LIMITS[kind]: 200, "temperature": 0, **options.pop("generation_kwargs", {})}
    secret = Secret.from_token(API_KEY)
    return kind(model="demo", api_base_url=base_url, api_key=secret, generation_kwargs=fields, max_retries=0, **options)


both = pytest.mark.parametrize("kind", LIMITS)


@both
def test_chat(kind: type, base_url: str) -> None:
    messages = [ChatMessage.from_system("Answer briefly."), ChatMessage.from_user(QUESTION)]
    (reply,) = build(kind, base_url).run(messages)["replies"]
    assert ANSWER in reply.text


@both
def test_stream(kind: type, base_url: str) -> None:
    chunks: list[StreamingChunk] = []
    (reply,) = build(kind, base_url, streaming_callback=chunks.append).run([ChatMessage.from_user(QUESTION)])["replies"]
    assert "".join(chunk.content for chunk in chunks) == reply.text
    assert ANSWER in reply.text


@pytest.mark.parametrize(
    ("kind", "field"), [(OpenAIChatGenerator, "response_format"), (OpenAIResponsesChatGenerator, "text_format")]
)
def test_structured_output(kind: type, field: str, base_url: str) -> None:
    generator = build(kind, base_url, generation_kwargs={field: City})
    (reply,) = generator.run([ChatMessage.from_user("Tell me of Madrid.")])["replies"]
    City.model_validate_json(reply.text)


@both
@pytest.mark.parametrize("strict", [False, True])
def test_tool(kind: type, strict: bool, base_url: str) -> None:
    """Covers a call, the tool's result, and the response to it."""
    tool = create_tool_from_function(weather)
    forced = build(kind, base_url, tools=[tool], tools_strict=strict, generation_kwargs={"tool_choice": "required"})
    asked = ChatMessage.from_user("How is the weather in Rome?")
    (reply,) = forced.run([asked])["replies"]
    call = reply.tool_calls[0]
    result = ChatMessage.from_tool(tool.invoke(**call.arguments), origin=call)
    others = [ChatMessage.from_tool("twice", origin=other) for other in reply.tool_calls[1:]]
    (answer,) = build(kind, base_url).run([asked, reply, result, *others])["replies"]
    assert answer.text


@both
def test_pipeline(kind: type, base_url: str) -> None:
    pipeline = Pipeline()
    template = [ChatMessage.from_user("What is the capital of {{ country }}?")]
    pipeline.add_component("prompt", ChatPromptBuilder(template=template, required_variables=["country"]))
    pipeline.add_component("model", build(kind, base_url))
    pipeline.connect("prompt.prompt", "model.messages")
    (reply,) = pipeline.run({"prompt": {"country": "Spain"}})["model"]["replies"]
    assert ANSWER in reply.text
