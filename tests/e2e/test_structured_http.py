"""Structured output and tools through official clients, from a real server process with a random model."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionToolParam
from server_process import API_KEY, MAX_QUEUE, MODEL, SLOTS, ServerProcess

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "remember", "description": "Remembers a person.", "parameters": PERSON},
}
ASK: Any = [{"role": "user", "content": "Tell me of a person."}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 200}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CHAT, response_format=FORMAT, temperature=1.5, seed=1, n=3)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), PERSON)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {**CHAT, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            choice: Any = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "remember")
    jsonschema.validate(json.loads(call.function.arguments), PERSON)


def test_a_message_that_must_use_a_tool(server: ServerProcess) -> None:
    with anthropic.Anthropic(base_url=server.url, api_key=API_KEY, max_retries=0) as client:
        message = client.messages.create(
            model=MODEL,
            max_tokens=200,
            messages=[{"role": "user", "content": "Tell me of a person."}],
            tools=[{"name": "remember", "input_schema": PERSON}],
            tool_choice={"type": "tool", "name": "remember"},
        )
    (block,) = message.content
    assert message.stop_reason == "tool_use"
    assert block.type == "tool_use"
    jsonschema.validate(block.input, PERSON)


def hostile_grammars() -> Iterator[tuple[str, str]]:
    """Grammars that end the process which compiles or follows them, and a word of each one's error."""
    definitions = ",".join(f'"{i}":{{"items":{{"\\u0024ref":"#/$defs/{i + 1}"}}}}' for i in range(5000))
    yield f'start: %json {{"\\u0024ref":"#/$defs/0","$defs":{{{definitions},"5000":{{}}}}}}', "too complex"
    permutations = "\n | ".join(f"A r::set_bit({i}) %if bit_clear({i})" for i in range(16))
    yield f'start: /[a-z]{{30}}/ r::0\nr::_: {permutations}\n | "" %if is_ones([0:16])\nA: "a"\n', "too much work"


def test_a_hostile_grammar_ends_its_own_request(client: openai.OpenAI) -> None:
    """Other requests are served meanwhile and afterwards. A crash writes nothing to the log."""
    free = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 200}
    with client.completions.create(**free, stream=True, extra_body={"ignore_eos": True}) as stream:
        for grammar, said in hostile_grammars():
            with pytest.raises(openai.BadRequestError, match=said):
                client.chat.completions.create(**CHAT, extra_body={"grammar": grammar})
        assert sum(len(chunk.choices) for chunk in stream) > 0
    answer = client.chat.completions.create(**CHAT, response_format=FORMAT)
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


async def test_constrained_among_others(async_client: openai.AsyncOpenAI) -> None:
    """Unconstrained requests generate the same tokens as without constrained neighbours."""
    free = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 60, "seed": 3, "temperature": 1.0}
    alone = (await async_client.completions.create(**free)).choices[0].text
    answers = await asyncio.gather(
        *(async_client.chat.completions.create(**CHAT, response_format=FORMAT, seed=seed) for seed in range(8)),
        *(async_client.completions.create(**free) for _ in range(SLOTS + MAX_QUEUE - 8)),
    )
    for answer in answers[:8]:
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)
    assert {answer.choices[0].text for answer in answers[8:]} == {alone}
