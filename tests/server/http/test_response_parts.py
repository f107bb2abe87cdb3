"""Timings of a response, and when they are reported."""

from typing import Any

from fake_server import VOCAB_SIZE, served_model
from roost.engine import FinishReason
from roost.server.generation.delta import Delta
from roost.server.generation.prompts import Prompt
from roost.server.observability.request_metrics import Times
from roost.server.openai.completions import ChatBody, ChatResponseBuilder
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer


def builder(wanted: bool = True, num_choices: int = 1) -> ChatResponseBuilder:
    messages = [{"role": "user", "content": "hi"}]
    body = ChatBody.model_validate({"messages": messages, "n": num_choices, "return_timings": wanted})
    return ChatResponseBuilder(body, served_model(synthetic_tokenizer(VOCAB_SIZE)), Prompt((4, 5, 6, 7)))


def timings_of(builder: ChatResponseBuilder, *choices: Delta) -> Any:
    return builder.whole(choices).get("timings")


def ended(index: int, num_tokens: int, times: Times) -> Delta:
    return Delta(index, token_ids=(9,) * num_tokens, finish_reason=FinishReason.STOP, times=times)


def test_several_choices_are_one_answer() -> None:
    choices = ended(0, 3, Times(1.0, 1.125, 1.5, 2.0)), ended(1, 5, Times(1.0, 1.0625, 1.25, 3.25))
    assert timings_of(builder(num_choices=2), *choices) == {
        "queue_ms": 62.5,
        "cache_n": 0,
        "prompt_n": 4,
        "prompt_ms": 250.0,
        "prompt_per_second": 16.0,
        "predicted_n": 8,
        "predicted_ms": 2000.0,
        "predicted_per_second": 4.0,
    }


def test_what_was_remembered_was_not_read() -> None:
    end = Delta(0, token_ids=(9,), finish_reason=FinishReason.STOP, num_cached=3, times=Times(1.0, 1.25, 1.5, 2.0))
    timings = timings_of(builder(), end)
    assert (timings["cache_n"], timings["prompt_n"], timings["prompt_per_second"]) == (3, 1, 2.0)


def test_a_stream_tells_it_with_the_last_choice() -> None:
    of_stream = builder(num_choices=2)
    reported: list[Any] = []
    for delta in (
        Delta(0, "a", token_ids=(9,)),
        ended(1, 1, Times(0.0, 0.5, 1.0, 2.0)),
        ended(0, 1, Times(0.0, 0.5, 1.0, 3.0)),
    ):
        reported += [chunk.get("timings") for chunk in of_stream.chunks(delta)]
    assert reported[:2] == [None] * 2
    assert reported[2]["predicted_n"] == 3


def test_nothing_is_told_unasked() -> None:
    assert timings_of(builder(wanted=False), ended(0, 1, Times(0.0, 0.5, 1.0, 2.0))) is None


def test_no_time_is_no_rate() -> None:
    assert timings_of(builder(), ended(0, 1, Times(1.0, 1.0, 1.0, 1.0)))["predicted_per_second"] == 0
