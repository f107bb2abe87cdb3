"""Events that only differ in their text are encoded the quick way, with the bytes of the slow one."""

import re
from dataclasses import replace
from typing import Any

import pytest
from fake_server import VOCAB_SIZE, served_model
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.engine import FinishReason, TokenLogprobs
from roost.server.generation.delta import Delta
from roost.server.generation.prompts import Prompt
from roost.server.http.responses import ResponseBuilder
from roost.server.openai.completions import ChatBody, ChatResponseBuilder, CompletionBody, CompletionResponseBuilder
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer

MODEL = served_model(synthetic_tokenizer(VOCAB_SIZE))
PROMPT = Prompt((4, 5))
WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
ENTRIES = (TokenLogprobs(-1.0),)
FIRSTS = [
    Delta(0, "a", token_ids=(4,), logprobs=ENTRIES, num_cached=1),
    Delta(1, "b", token_ids=(5,), logprobs=ENTRIES),
]


def builder(api: str, fields: dict[str, Any]) -> ResponseBuilder:
    """Returns the builder of a stream of two choices, both of which have begun."""
    fields = {"n": 2, "stream": True, **fields}
    if api == "chat":
        chat = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields})
        made: ResponseBuilder = ChatResponseBuilder(chat, MODEL, PROMPT)
    else:
        made = CompletionResponseBuilder(CompletionBody.model_validate({"prompt": "hi", **fields}), MODEL, [PROMPT])
    for first in FIRSTS:
        list(made.chunks(first))
    return made


def encoded(made: ResponseBuilder, delta: Delta) -> bytes:
    return b"".join(made.sse.encode(chunk) for chunk in made.chunks(delta))


def without_id(events: bytes) -> bytes:
    return re.sub(rb"cmpl-[0-9a-f]{32}", b"cmpl-", events)


@pytest.mark.parametrize("fields", [{}, WITH_USAGE], ids=["plain", "usage"])
@pytest.mark.parametrize("api", ["chat", "completions"])
@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.tuples(st.integers(0, 1), st.text(min_size=1)), min_size=1))
def test_a_text_event_has_the_bytes_of_its_chunk(
    api: str, fields: dict[str, Any], texts: list[tuple[int, str]]
) -> None:
    quick, slow = builder(api, fields), builder(api, fields)
    for index, text in texts:
        delta = Delta(index, text, token_ids=(7, 8))
        event = quick.text_event(index, text, 2)
        assert event is not None
        assert without_id(event) == without_id(encoded(slow, delta))
    ends = [Delta(index, finish_reason=FinishReason.STOP) for index in range(2)]
    last = [[encoded(made, end) for end in ends] + [*map(made.sse.encode, made.closing())] for made in (quick, slow)]
    assert without_id(b"".join(last[0])) == without_id(b"".join(last[1])), "their tokens are counted"


TEXT = Delta(0, "a", token_ids=(4,))
CONTINUOUS: dict[str, Any] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.mark.parametrize(
    ("api", "fields", "delta"),
    [
        ("chat", {"logprobs": True}, replace(TEXT, logprobs=ENTRIES)),
        ("completions", {"logprobs": 1}, replace(TEXT, logprobs=ENTRIES)),
        *((api, {"return_token_ids": True}, TEXT) for api in ("chat", "completions")),
        *((api, CONTINUOUS, TEXT) for api in ("chat", "completions")),
        *((api, {}, Delta(0, token_ids=(4,))) for api in ("chat", "completions")),
    ],
)
def test_other_deltas_have_none_and_are_not_counted(api: str, fields: dict[str, Any], delta: Delta) -> None:
    made, other = builder(api, fields), builder(api, fields)
    assert made.text_event(0, delta.text, 1) is None
    assert without_id(encoded(made, delta)) == without_id(encoded(other, delta))


def test_the_first_completion_of_a_choice_tells_of_the_prompt() -> None:
    made = CompletionResponseBuilder(CompletionBody(prompt="hi", echo=True, stream=True), MODEL, [PROMPT])
    assert made.text_event(0, "a", 1) is None
    assert b'"text":"aba"' in encoded(made, TEXT)
    assert made.text_event(0, "a", 1) is not None
