"""OpenAI's official client against a real server process."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from server_process import API_KEY, MAX_QUEUE, MODEL, SLOTS, ServerProcess, metric, until

HI: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def is_idle(server: ServerProcess) -> bool:
    return not metric(server, "roost_slots_used ") and not metric(server, "roost_num_requests_waiting ")


def test_streamed_chat_equals_the_whole_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=40, seed=2)
    stream = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=40, seed=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    usages = [each and (each.prompt_tokens, each.completion_tokens) for each in (chunks[-1].usage, answer.usage)]
    assert usages[0] == usages[1] is not None


def test_a_continuation_scores_as_it_was_generated(client: openai.OpenAI) -> None:
    """Evaluation harnesses rely on this: the same tokens as a prompt have the same log-probabilities."""
    made = client.completions.create(
        model=MODEL, prompt=[2, 9, 9, 10], max_tokens=6, logprobs=1, seed=4, extra_body={"return_token_ids": True}
    ).choices[0]
    assert made.model_extra is not None
    scored = client.completions.create(
        model=MODEL, prompt=[2, 9, 9, 10, *made.model_extra["token_ids"]], max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    assert made.logprobs is not None
    assert scored.logprobs is not None
    assert scored.logprobs.token_logprobs is not None
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[4:] == pytest.approx(made.logprobs.token_logprobs, abs=1e-4)


def test_a_conversation_of_responses(client: openai.OpenAI) -> None:
    """The state of the first prompt is restored, and the second output is that of the whole conversation."""
    text = "Tell me of the sea. " * 10
    options: dict[str, Any] = {"model": MODEL, "temperature": 0}
    first = client.responses.create(input=text, max_output_tokens=8, **options)
    second = client.responses.create(input="go on", max_output_tokens=8, previous_response_id=first.id, **options)
    messages: Any = [{"role": "user", "content": text}, {"role": "assistant", "content": first.output_text}]
    messages += [{"role": "user", "content": "go on"}]
    chat = client.chat.completions.create(messages=messages, max_tokens=8, **options)
    assert second.output_text == chat.choices[0].message.content
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens == first.usage.input_tokens // 64 * 64 >= 64
    assert client.responses.retrieve(second.id) == second
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_a_stored_conversation(client: openai.OpenAI) -> None:
    conversation = client.conversations.create(
        metadata={"topic": "sea"}, items=[{"type": "message", "role": "user", "content": "hi"}]
    )
    options: dict[str, Any] = {"max_output_tokens": 8, "extra_body": {"ignore_eos": True}}
    first = client.responses.create(model=MODEL, input="one", conversation=conversation.id, **options)
    assert first.conversation is not None
    assert first.conversation.id == conversation.id
    stream = client.responses.create(
        model=MODEL, input="two", conversation={"id": conversation.id}, stream=True, **options
    )
    last = list(stream)[-1]
    assert last.type == "response.incomplete"
    second = last.response
    items = client.conversations.items
    found = list(items.list(conversation.id, order="asc", limit=2))
    texts = [each.content[0].text for each in found if each.type == "message" and each.content[0].type != "refusal"]
    assert texts == ["hi", "one", first.output_text, "two", second.output_text]
    assert items.retrieve(str(found[2].id), conversation_id=conversation.id) == found[2]
    assert found[2].id == first.output[0].id
    assert items.delete(str(found[2].id), conversation_id=conversation.id) == conversation
    added = items.create(conversation.id, items=[{"role": "user", "content": "three"}])
    assert [each.id for each in items.list(conversation.id, limit=1)][:1] == [added.last_id]
    assert client.conversations.update(conversation.id, metadata={}).metadata == {}
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=MODEL, input="one", conversation=conversation.id)


def test_a_streamed_response(client: openai.OpenAI) -> None:
    """The client assembles the response from its events; it must equal the response of the last event."""
    with client.responses.stream(model=MODEL, input="hi", max_output_tokens=8, temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    whole = client.responses.create(model=MODEL, input="hi", max_output_tokens=8, temperature=0)
    assert "".join(texts) == whole.output_text
    assert whole.status == "incomplete"


def test_a_background_stream_is_taken_up_again(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"input": "hi", "max_output_tokens": 40, "extra_body": {"ignore_eos": True}}
    stream = client.responses.create(model=MODEL, background=True, stream=True, temperature=0, **options)
    seen = []
    for event in stream:
        seen.append(event)
        if len(seen) == 6:
            break
    stream.close()
    assert seen[0].type == "response.created"
    response_id = seen[0].response.id
    seen += client.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    whole = client.responses.retrieve(response_id)
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == whole.output_text
    assert [item.type for item in client.responses.input_items.list(response_id)] == ["message"]


def test_errors_have_the_clients_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-5", messages=HI)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=HI, temperature=3)
    assert bad.value.param == "temperature"
    assert bad.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="hi")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


async def test_a_full_queue(async_client: openai.AsyncOpenAI, server: ServerProcess) -> None:
    """The slots are taken by requests without an end, so that the queue stays full."""
    await asyncio.to_thread(until, lambda: is_idle(server))

    async def ask(**fields: Any) -> str:
        try:
            await async_client.completions.create(model=MODEL, prompt="a", **{"max_tokens": 3, **fields})
        except openai.RateLimitError as error:
            return f"{error.code}, retry after {error.response.headers['retry-after']}"
        return "answered"

    async def load(name: str, count: int) -> None:
        async with asyncio.timeout(120), httpx.AsyncClient(headers={"x-api-key": API_KEY}) as raw:
            while (await raw.get(f"{server.url}/load")).json()[name] < count:
                await asyncio.sleep(0.02)

    endless = {"max_tokens": 1_000_000, "extra_body": {"ignore_eos": True}}
    running = [asyncio.create_task(ask(**endless)) for _ in range(SLOTS)]
    await load("running", SLOTS)
    waiting = [asyncio.create_task(ask()) for _ in range(MAX_QUEUE)]
    await load("waiting", MAX_QUEUE)
    for outcome in await asyncio.gather(*(ask() for _ in range(SLOTS + MAX_QUEUE))):
        assert re.fullmatch("rate_limit_exceeded, retry after [1-9][0-9]*", outcome)
    for each in running:
        each.cancel()
    assert set(await asyncio.gather(*waiting)) == {"answered"}


def test_nothing_was_compiled_after_ready(server: ServerProcess) -> None:
    """Runs last, after all tests above."""
    assert metric(server, "roost_compiles_since_ready_total") == 0
    assert metric(server, "roost_generation_tokens_total") > 0
    until(lambda: is_idle(server))
