"""From tokens to deltas: every way to end, and what is held back."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest
from fake_engine import FakeEngine
from fake_server import until
from roost.engine import FinishReason, SamplingParams
from roost.server.errors import ApiError
from roost.server.generation import choices as generation_module
from roost.server.generation.choices import Choice, Generation, collect, generate_choice
from roost.server.generation.delta import Delta
from roost.server.generation.prompts import Prompt
from roost.server.generation.tools import call_text
from roost.server.observability.metrics import Metrics
from roost.server.text.tokenizer import Tokenizer

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


async def test_what_a_client_does_not_read_is_bounded(
    engine: FakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slots are free then, and a client that comes back gets what there was, and why there is no more."""
    monkeypatch.setattr(generation_module, "MAX_UNREAD_BYTES", 100)
    metrics = Metrics(lambda: engine.stats)
    choices = [Choice(i, Prompt((4,)), SamplingParams(max_tokens=None)) for i in range(2)]
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice) for choice in choices])
    first = await anext(generation)
    await until(lambda: len(engine.requests) == 2 and not engine.running)
    left = [await anext(generation), await anext(generation)]
    assert {delta.index for delta in left} == {0, 1}
    own = "".join(delta.text for delta in [first, *left] if delta.index == first.index)
    assert own == "bcdefghijklmnopqrstuvwxyz"[: len(own)]
    assert all(len(delta.text) <= 100 // 9 + 1 for delta in left)
    with pytest.raises(ApiError) as refused:
        await anext(generation)
    assert (refused.value.status_code, refused.value.body["error"]["code"]) == (408, "client_too_slow")
    await generation.aclose()


NUM_TOKENS = 5_000


async def ahead(index: int = 0, text: str = "x" * 100, num_tokens: int = NUM_TOKENS) -> AsyncGenerator[Delta]:
    """A choice whose tokens come faster than anybody gets a turn to send them."""
    for _ in range(num_tokens):
        yield Delta(index, text, token_ids=(7,))
    yield Delta(index, finish_reason=FinishReason.LENGTH)


async def read_all(generation: Generation) -> list[Delta]:
    try:
        return [delta async for delta in generation]
    finally:
        await generation.aclose()


async def test_a_reader_that_waits_is_never_too_slow_however_much_comes_at_once() -> None:
    """It is the server that falls behind then. What has come is sent in few, large events."""
    (delta,) = await read_all(Generation([ahead()]))
    assert delta.text == "x" * (100 * NUM_TOKENS)
    assert (len(delta.token_ids), delta.finish_reason) == (NUM_TOKENS, FinishReason.LENGTH)


async def test_deltas_of_several_choices_are_joined_apart() -> None:
    deltas = await read_all(Generation([ahead(index, "abc"[index], 1000) for index in range(3)]))
    assert [(delta.index, delta.text) for delta in deltas] == [(i, "abc"[i] * 1000) for i in range(3)]


async def test_a_reader_that_keeps_up_gets_every_delta(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    metrics = Metrics(lambda: engine.stats)
    choice = Choice(0, Prompt((4,)), SamplingParams(max_tokens=5))
    deltas = await read_all(Generation([generate_choice(engine, tokenizer, metrics, "id", choice)]))
    assert [delta.text for delta in deltas] == ["b", "c", "d", "e", "f"]


async def test_a_reader_with_much_to_catch_up_lets_others_have_their_turns() -> None:
    generation = Generation([ahead(index, "x", 100) for index in range(100)])
    await asyncio.sleep(0)
    reading = asyncio.create_task(read_all(generation))
    num_turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert len(await reading) == 100
    assert num_turns >= 100


async def test_an_error_comes_after_what_was_made_before_it() -> None:
    async def breaks() -> AsyncGenerator[Delta]:
        for _ in range(10):
            yield Delta(0, "x", token_ids=(7,))
        raise RuntimeError("it broke")

    generation = Generation([breaks()])
    assert (await anext(generation)).text == "x" * 10
    with pytest.raises(RuntimeError, match="it broke"):
        await anext(generation)


@pytest.mark.parametrize("sends_ids", [False, True])
async def test_what_counts_as_sent_is_what_was_taken_out(
    engine: FakeEngine, tokenizer: Tokenizer, sends_ids: bool
) -> None:
    """Not what waits for a slow client; and of half a character only its ids, where ids are the answer."""
    engine.says = [5, *EURO, 6, 7]
    metrics = Metrics(lambda: engine.stats)
    choice = Choice(0, Prompt((4,)), SamplingParams(max_tokens=6), sends_ids=sends_ids)
    counts = [delta.num_sent async for delta in generate_choice(engine, tokenizer, metrics, "alone", choice)]
    assert counts == ([1, 2, 3, 4, 5, 6] if sends_ids else [1, 1, 1, 4, 5, 6])
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice)])
    await until(lambda: len(engine.given.get("id-0", ())) == 6)
    assert generation.sent.num_tokens[0] == 0, "nobody has taken anything out"
    await anext(generation)
    assert generation.sent.num_tokens[0] == 6
    await generation.aclose()


async def test_a_call_counts_as_sent_when_it_is_told(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    text = call_text("f", '{"a": 1}')
    engine.says = tokenizer.encode(text, control_tokens=False)
    params = SamplingParams(max_tokens=500, end_token_ids=tokenizer.end_token_ids)
    choice = Choice(0, Prompt((4,)), params, may_call=True)
    metrics = Metrics(lambda: engine.stats)
    generation = Generation([generate_choice(engine, tokenizer, metrics, "id", choice)])
    told, num_tokens = "", 0
    async for delta in generation:
        num_tokens += len(delta.token_ids)
        told += "".join(piece.arguments for piece in delta.calls)
        if not delta.calls and not told:
            assert generation.sent.num_tokens[0] == 0, "nothing is known of it yet"
    assert told == '{"a": 1}'
    assert generation.sent.num_tokens[0] == num_tokens == len(engine.says) + 1
    await generation.aclose()
