"""From tokens to deltas: every way to end, and what is held back."""

import asyncio
from collections.abc import Sequence

import pytest
from fake_engine import FakeEngine
from fake_server import until
from roost.engine import FinishReason, SamplingParams
from roost.server import generation as generation_module
from roost.server.errors import ApiError
from roost.server.generation import Choice, Delta, Generation, collect, generate_choice
from roost.server.metrics import Metrics
from roost.server.prompts import Prompt
from roost.server.tokenizer import Tokenizer

EURO = (270, 174, 216)  # the bytes e2 82 ac


async def run(
    engine: FakeEngine, tokenizer: Tokenizer, last_prompt_ids: Sequence[int], **fields: object
) -> list[Delta]:
    """One choice per prompt, all with the same fields; "stop" and "include_stop" are the choice's own."""
    own = {name: fields.pop(name) for name in ("stop", "include_stop") if name in fields}
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    choices = [Choice(i, Prompt((last,)), params, **own) for i, last in enumerate(last_prompt_ids)]  # type: ignore[arg-type]
    metrics = Metrics(lambda: engine.stats)
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice) for choice in choices])
    try:
        return await collect(generation)
    finally:
        await generation.aclose()


async def test_choices_come_back_whole_and_in_order(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    deltas = await run(engine, tokenizer, [4, 20, 8], max_tokens=3)
    assert [(delta.index, delta.text) for delta in deltas] == [(0, "bcd"), (1, "rst"), (2, "fgh")]
    assert [request.id for request in engine.requests] == ["id-0", "id-1", "id-2"]
    assert all(delta.finish_reason is FinishReason.LENGTH for delta in deltas)


async def test_a_stop_string_closes_the_engines_stream(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], max_tokens=None, stop=("def",))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("bc", FinishReason.STOP, "def")
    assert delta.token_ids == (5, 6, 7, 8, 9)
    assert not engine.running


async def test_what_was_held_back_for_a_stop_string_comes_at_the_end(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], max_tokens=4, stop=("efg",))
    assert (delta.text, delta.finish_reason) == ("bcde", FinishReason.LENGTH)


async def test_a_stop_token_is_no_text_but_a_token(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], stop_token_ids=(7,), logprobs=0)
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("bc", (5, 6, 7), 7)
    assert len(delta.logprobs) == 3
    (delta,) = await run(engine, tokenizer, [4], stop_token_ids=(7,), include_stop=True)
    assert delta.text == "bcd"


async def test_the_text_of_a_stop_token_completes_no_stop_string(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], stop_token_ids=(7,), stop=("cd",))
    assert (delta.text, delta.stop_reason) == ("bc", 7)


async def test_half_a_character_at_the_end_is_replaced(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [EURO[0] - 1], max_tokens=1)
    assert (delta.text, delta.token_ids) == ("\ufffd", (EURO[0],))


async def test_closing_frees_every_slot(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    metrics = Metrics(lambda: engine.stats)
    choices = [Choice(i, Prompt((4,)), SamplingParams(max_tokens=None)) for i in range(3)]
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice) for choice in choices])
    await anext(generation)
    assert len(engine.running) == 3
    await generation.aclose()
    await generation.aclose()
    assert not engine.running


async def test_waiting_may_be_cancelled_and_begun_again(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.gate.clear()
    metrics = Metrics(lambda: engine.stats)
    choice = Choice(0, Prompt((4,)), SamplingParams(max_tokens=2))
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice)])
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(generation)
    engine.gate.set()
    assert [delta.text async for delta in generation] == ["b", "c"]
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_the_failure_of_one_choice_is_raised(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.breaks_after = 1
    with pytest.raises(RuntimeError, match="secret detail"):
        await run(engine, tokenizer, [4, 5])
    assert not engine.running


async def test_what_nobody_reads_is_bounded(
    engine: FakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slots are free then, and a reader who comes back gets what there was, and why there is no more."""
    monkeypatch.setattr(generation_module, "MAX_BACKLOG", 5)
    metrics = Metrics(lambda: engine.stats)
    choices = [Choice(i, Prompt((4,)), SamplingParams(max_tokens=None)) for i in range(2)]
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice) for choice in choices])
    await until(lambda: len(engine.requests) == 2 and not engine.running)
    assert [(await anext(generation)).index for _ in range(10)] == [0, 1] * 5
    with pytest.raises(ApiError) as refused:
        await anext(generation)
    assert (refused.value.status_code, refused.value.body["error"]["code"]) == (408, "client_too_slow")
    await generation.aclose()
