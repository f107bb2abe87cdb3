"""What is said of time, and when."""

from roost.engine import FinishReason
from roost.server.api.common.timings import TimingReport
from roost.server.api.openai.schemas import CompletionBody
from roost.server.generation.delta import Delta
from roost.server.generation.prompts import Prompt
from roost.server.observability.request_record import Times

PROMPTS = [Prompt((4, 5, 6, 7))]


def report(wanted: bool = True, num_choices: int = 1) -> TimingReport:
    body = CompletionBody.model_validate({"prompt": "a", "return_timings": wanted})
    return TimingReport(body, PROMPTS, num_choices)


def ended(index: int, num_tokens: int, times: Times) -> Delta:
    return Delta(index, token_ids=(9,) * num_tokens, finish_reason=FinishReason.STOP, times=times)


def test_several_choices_are_one_answer() -> None:
    timings = report(num_choices=2).whole(
        [ended(0, 3, Times(1.0, 1.125, 1.5, 2.0)), ended(1, 5, Times(1.0, 1.0625, 1.25, 3.25))]
    )
    assert timings == {
        "timings": {
            "queue_ms": 62.5,
            "cache_n": 0,
            "prompt_n": 4,
            "prompt_ms": 250.0,
            "prompt_per_second": 16.0,
            "predicted_n": 8,
            "predicted_ms": 2000.0,
            "predicted_per_second": 4.0,
        }
    }


def test_what_was_remembered_was_not_read() -> None:
    end = Delta(0, token_ids=(9,), finish_reason=FinishReason.STOP, num_cached=3, times=Times(1.0, 1.25, 1.5, 2.0))
    timings = report().whole([end])["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["prompt_per_second"]) == (3, 1, 2.0)


def test_a_stream_tells_it_with_the_last_choice() -> None:
    of_stream = report(num_choices=2)
    told = []
    for delta in (
        Delta(0, token_ids=(9,)),
        ended(1, 1, Times(0.0, 0.5, 1.0, 2.0)),
        ended(0, 1, Times(0.0, 0.5, 1.0, 3.0)),
    ):
        of_stream.count(delta)
        told.append(of_stream.fields())
    assert told[:2] == [{}, {}]
    assert told[2]["timings"]["predicted_n"] == 3


def test_nothing_is_told_unasked() -> None:
    assert report(wanted=False).whole([ended(0, 1, Times(0.0, 0.5, 1.0, 2.0))]) == {}


def test_no_time_is_no_rate() -> None:
    assert report().whole([ended(0, 1, Times(1.0, 1.0, 1.0, 1.0))])["timings"]["predicted_per_second"] == 0
