"""Joined deltas: a client that gets fewer, larger events gets the same answer, in every API."""

import itertools
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fake_engine import entry
from fake_server import served_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from roost.engine import FinishReason, SamplingParams
from roost.server.constraints.tool_calls import CallReader, call_text
from roost.server.features.anthropic.messages import MessageBuilder
from roost.server.features.native.generate import GenerateBody, TokensResponseBuilder
from roost.server.features.responses.body import ResponseBody
from roost.server.features.responses.builder import ResponsesBuilder
from roost.server.generation.delta import Delta, DeltaJoiner
from roost.server.generation.prompts import Prompt
from roost.server.generation.spec import GenerationSpec
from roost.server.http.responses import ResponseBuilder, to_json
from roost.server.openai.completions import ChatBody, ChatResponseBuilder, CompletionBody, CompletionResponseBuilder
from roost.server.text.chat_format import ConversationMessage
from roost.server.text.detokenizer import Detokenizer
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer

TOKENIZER = synthetic_tokenizer(512)
MODEL = served_model(TOKENIZER)
PROMPT = Prompt(tuple(TOKENIZER.encode("hi")))
HI = [{"role": "user", "content": "hi"}]
USAGE = {"include_usage": True, "continuous_usage_stats": True}
PARAMS = SamplingParams(max_tokens=9)

TEXTS = st.lists(st.sampled_from(["a", "日本", "👍🏽", "\n", "<tool_call>", "e\u0301", "<end_of_turn>"])).map("".join)
ANSWERS = TEXTS | st.lists(st.sampled_from(["{}", '{"a": "}\\"日"}']), min_size=1, max_size=3).map(
    lambda arguments: "\n".join(call_text("f", each) for each in arguments)
)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
ENDS = st.sampled_from([FinishReason.STOP, FinishReason.LENGTH])


def answer(text: str, index: int, finish_reason: FinishReason) -> list[Delta]:
    """One delta per token, as the choice's task makes them."""
    detokenizer, reader = Detokenizer(TOKENIZER), CallReader()
    ids = TOKENIZER.encode(text) or TOKENIZER.encode("a")
    deltas = []
    for token_id in ids:
        shown, calls = reader.read(detokenizer.push([token_id]), is_last=False)
        deltas.append(Delta(index, shown, calls, token_ids=(token_id,), logprobs=(entry(token_id, 2),)))
    shown, calls = reader.read(detokenizer.finish(), is_last=True)
    called = finish_reason is FinishReason.STOP and reader.is_complete
    last = Delta(index, shown, calls, called, finish_reason=finish_reason)
    scored = (None, *(entry(token_id, 2) for token_id in PROMPT.token_ids[1:]))
    return [replace(deltas[0], prompt_logprobs=scored, num_cached=1), *deltas[1:], last]


def joined(deltas: Sequence[Delta]) -> Delta:
    joiner = DeltaJoiner()
    for delta in deltas:
        joiner.add(delta)
    return joiner.take()


def regrouped(deltas: Sequence[Delta], cuts: Sequence[int]) -> list[Delta]:
    """Consecutive deltas joined between the cuts."""
    borders = sorted({0, len(deltas), *(cut % len(deltas) for cut in cuts)})
    return [joined(deltas[start:end]) for start, end in itertools.pairwise(borders)]


@given(text=ANSWERS, cuts=CUTS, end=ENDS)
def test_the_whole_does_not_depend_on_what_was_joined_before(text: str, cuts: list[int], end: FinishReason) -> None:
    deltas = answer(text, 0, end)
    assert joined(regrouped(deltas, cuts)) == joined(deltas)


class Reader:
    """A client that puts an answer together from events, by each API's rules."""

    def __init__(self) -> None:
        self.text: dict[tuple[Any, ...], str] = {}
        self.lists: dict[tuple[Any, ...], list[Any]] = {}
        self.last: dict[tuple[Any, ...], Any] = {}

    def read(self, value: Any, path: tuple[Any, ...] = ()) -> None:
        """Texts that grow are joined, lists that grow are too, and of all else the last value counts."""
        match value:
            case {"index": int() as index, **fields} | {"output_index": int() as index, **fields}:
                for name, each in fields.items():
                    self.read(each, (*path, index, name))
            case Mapping():
                for name, each in value.items():
                    self.read(each, (*path, name))
            case str() if path[-1] in GROWING:
                self.text[path] = self.text.get(path, "") + value
            case [{"index": int()}, *_]:
                for each in value:
                    self.read(each, path)
            case list() | tuple() if path[-1] in LISTS:
                self.lists.setdefault(path, []).extend(value)
            case None:
                pass
            case _:
                self.last[path] = value

    @property
    def answer(self) -> tuple[Any, ...]:
        grown = {path: text for path, text in self.text.items() if text}
        return grown, {path: entries for path, entries in self.lists.items() if entries}, self.last


GROWING = {"content", "text", "arguments", "partial_json", "delta"}
LISTS = {"token_ids", "content", "tokens", "token_logprobs", "top_logprobs", "text_offset", "own", "top", "logprobs"}


def without_ids(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event but for what is random or counts events."""
    text = re.sub(r"(resp|msg|call|fc|chatcmpl|cmpl|gen)_?-?[0-9a-f]{32}", r"\1", to_json(event).decode())
    return {
        name: value
        for name, value in json.loads(text).items()
        if name not in ("sequence_number", "created", "response")
    }


def built(builder: ResponseBuilder, deltas: Sequence[Delta]) -> tuple[Any, ...]:
    reader, kinds, final = Reader(), [], None
    for event in events(builder, deltas):
        kind = str(event.get("type", ""))
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
        final = event.get("response", final)
        if not kind.endswith((".done", ".added")):
            reader.read(without_ids(event), (kind,) if kind else ())
        else:
            reader.last[len(reader.last), kind] = without_ids(event)
    return kinds, reader.answer, None if final is None else (final["output"] and final["usage"], final["status"])


def events(builder: ResponseBuilder, deltas: Sequence[Delta]) -> Iterator[Mapping[str, Any]]:
    yield from builder.opening()
    for delta in deltas:
        yield from builder.chunks(delta)
    yield from builder.closing()


def chat_builder() -> ResponseBuilder:
    body = ChatBody.model_validate(
        {"messages": HI, "n": 2, "logprobs": True, "return_token_ids": True} | {"stream": True, "stream_options": USAGE}
    )
    return ChatResponseBuilder(body, MODEL, PROMPT)


def completion_builder() -> ResponseBuilder:
    body = CompletionBody.model_validate(
        {"prompt": "hi", "n": 2, "logprobs": 2, "echo": True, "return_token_ids": True}
        | {"stream": True, "stream_options": USAGE}
    )
    return CompletionResponseBuilder(body, MODEL, [PROMPT])


def tokens_builder() -> ResponseBuilder:
    body = GenerateBody.model_validate({"token_ids": [1], "n": 2, "logprobs": 2, "prompt_logprobs": 2})
    return TokensResponseBuilder(body, MODEL, PROMPT)


async def keep_nothing(response: dict[str, Any], message: ConversationMessage) -> None: ...


def responses_builder(with_logprobs: bool = True) -> ResponseBuilder:
    include = ["message.output_text.logprobs"] if with_logprobs else []
    body = ResponseBody.model_validate({"input": "hi", "include": include})
    return ResponsesBuilder(body, MODEL, GenerationSpec([PROMPT], [PARAMS]), keep_nothing)


BUILDERS: dict[str, tuple[Callable[[], ResponseBuilder], int]] = {
    "chat": (chat_builder, 2),
    "completions": (completion_builder, 2),
    "generate": (tokens_builder, 2),
    "responses": (responses_builder, 1),
    "responses without logprobs": (lambda: responses_builder(with_logprobs=False), 1),
    "messages": (lambda: MessageBuilder(MODEL, PROMPT), 1),
}


@pytest.mark.parametrize("api", BUILDERS)
@settings(max_examples=30, deadline=None)
@given(texts=st.tuples(ANSWERS, ANSWERS), cuts=st.tuples(CUTS, CUTS), end=ENDS)
@example(texts=(call_text("f", "{}") + "\n" + call_text("f", "{}"), "日本"), cuts=([], []), end=FinishReason.STOP)
def test_larger_events_tell_the_same(
    api: str, texts: tuple[str, str], cuts: tuple[list[int], list[int]], end: FinishReason
) -> None:
    make_builder, num_choices = BUILDERS[api]
    choices = [answer(texts[index], index, end) for index in range(num_choices)]
    fewer = [regrouped(choice, cuts[index]) for index, choice in enumerate(choices)]
    assert built(make_builder(), [*itertools.chain(*fewer)]) == built(make_builder(), [*itertools.chain(*choices)])


def held_bytes(work: Callable[[], object]) -> int:
    """Most memory that the work holds at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


NUM_TOKENS = 4_000


@pytest.mark.parametrize("text", ["abcd", ""], ids=["text", "no text"])
def test_the_builder_of_responses_keeps_the_text_and_not_the_deltas(text: str) -> None:
    def work() -> None:
        builder = responses_builder(with_logprobs=False)
        for _ in range(NUM_TOKENS):
            for _ in builder.chunks(Delta(0, text, token_ids=(7,))):
                pass

    assert held_bytes(work) < 32 * NUM_TOKENS
