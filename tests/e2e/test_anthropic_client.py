"""Anthropic's official client against a real server process."""

from collections.abc import Iterator
from typing import Literal

import anthropic
import pytest
from anthropic.types import MessageParam
from pydantic import BaseModel
from server_process import API_KEY, MODEL, ServerProcess

GREEDY = {"temperature": 0}
HI: list[MessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=API_KEY, max_retries=0) as client:
        yield client


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_stream_equals_the_whole_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model=MODEL, messages=HI, max_tokens=8, extra_body=GREEDY)
    with client.messages.stream(model=MODEL, messages=HI, max_tokens=8, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert text == text_of(whole) == text_of(streamed)
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert whole._request_id is not None


def test_errors_have_the_clients_classes(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        client.messages.create(model="claude", messages=HI, max_tokens=1)
    with pytest.raises(anthropic.BadRequestError, match="top_p") as bad:
        client.messages.create(model=MODEL, messages=HI, max_tokens=1, extra_body={"top_p": 7})
    assert bad.value.request_id is not None
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(model=MODEL, messages=HI, max_tokens=1)


class Verdict(BaseModel):
    """What an answer is parsed into."""

    ok: bool
    score: Literal[1, 2, 3]


def test_parsed_message_matches_its_model(client: anthropic.Anthropic) -> None:
    """Uses agents' options: thinking, a cached prompt, and tools that only Anthropic runs."""
    message = client.messages.parse(
        model=MODEL,
        messages=HI,
        max_tokens=100,
        output_format=Verdict,
        system=[{"type": "text", "text": "be short", "cache_control": {"type": "ephemeral"}}],
        thinking={"type": "enabled", "budget_tokens": 1024},
    )
    assert isinstance(message.parsed_output, Verdict)
    assert message.usage.cache_creation_input_tokens is not None
