"""Tests of generations: every way to end, held-back text, slow readers, and errors."""

import asyncio
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextvars import Context
from typing import Any

import pytest
from fake_engine import FakeEngine
from fake_server import until
from held_time import held_time
from roost.engine import EngineDeadError, FinishReason, OutputSink, Request, SamplingParams, TokenLogprobs, TokenOutput
from roost.server.constraints.tool_calls import call_text
from roost.server.errors.request_errors import ApiError
from roost.server.generation import generation
from roost.server.generation.delta import Delta
from roost.server.generation.generation import Generation, Mailbox, collect
from roost.server.generation.prompts import Prompt
from roost.server.generation.spec import GenerationSpec
from roost.server.observability.logging import request_id
from roost.server.observability.metrics import Metrics
from roost.server.observability.request_metrics import Observer, RequestRecord, RequestTracker
from roost.server.text.tokenizer import Tokenizer

EURO = (270, 174, 216)  # the bytes e2 82 ac


def start(
    engine: FakeEngine,
    tokenizer: Tokenizer,
    num_choices: int = 1,
    *,
    response_id: str = "id",
    last_prompt_ids: Sequence[int] = (),
    params: SamplingParams | None = None,
    tracker: RequestTracker | None = None,
    max_unread_bytes: int = generation.MAX_UNREAD_BYTES,
    **fields: Any,
) -> Generation:
    """Starts choices of endless length, or with these parameters, and fields of their spec."""
    last_prompt_ids = last_prompt_ids or [4] * num_choices
    params = params or SamplingParams(max_tokens=None)
    tracker = tracker or Metrics(lambda: engine.stats).requests
    requests = [Request(f"{response_id}-{i}", (last,), params) for i, last in enumerate(last_prompt_ids)]
    spec = GenerationSpec([Prompt((last,)) for last in last_prompt_ids], [params], **fields)
    return Generation.start(engine, tokenizer, tracker, spec, requests, max_unread_bytes)


async def run(engine: FakeEngine, tokenizer: Tokenizer, last_prompt_ids: Sequence[int], **fields: Any) -> list[Delta]:
    """One choice per prompt, all with the same fields; "stop" and "include_stop" are the spec's own."""
    own = {name: fields.pop(name) for name in ("stop", "include_stop") if name in fields}
    generation = start(engine, tokenizer, last_prompt_ids=last_prompt_ids, params=SamplingParams(**fields), **own)
    try:
        return await collect(generation)
    finally:
        generation.close()


async def test_collect_returns_whole_choices_in_order(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    deltas = await run(engine, tokenizer, [4, 20, 8], max_tokens=3)
    assert [(delta.index, delta.text) for delta in deltas] == [(0, "bcd"), (1, "rst"), (2, "fgh")]
    assert [request.id for request in engine.requests] == ["id-0", "id-1", "id-2"]
    assert all(delta.finish_reason is FinishReason.LENGTH for delta in deltas)


async def test_stop_string_aborts_the_engines_request(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], max_tokens=None, stop=("def",))
    assert (delta.text, delta.finish_reason, delta.stop_reason) == ("bc", FinishReason.STOP, "def")
    assert delta.token_ids == (5, 6, 7, 8, 9)
    assert not engine.running


async def test_text_held_back_for_a_stop_string_comes_at_the_end(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], max_tokens=4, stop=("efg",))
    assert (delta.text, delta.finish_reason) == ("bcde", FinishReason.LENGTH)


async def test_stop_token_is_a_token_without_text(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], stop_token_ids=(7,), logprobs=0)
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("bc", (5, 6, 7), 7)
    assert len(delta.logprobs) == 3
    (delta,) = await run(engine, tokenizer, [4], stop_token_ids=(7,), include_stop=True)
    assert delta.text == "bcd"


async def test_text_of_a_stop_token_completes_no_stop_string(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    (delta,) = await run(engine, tokenizer, [4], stop_token_ids=(7,), stop=("cd",))
    assert (delta.text, delta.stop_reason) == ("bc", 7)


async def test_closing_frees_every_slot(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    generation = start(engine, tokenizer, 3)
    await anext(generation)
    assert len(engine.running) == 3
    generation.close()
    generation.close()
    assert not engine.running


async def test_cancelled_wait_loses_nothing(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    engine.gate.clear()
    generation = start(engine, tokenizer, params=SamplingParams(max_tokens=2))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(generation)
    engine.gate.set()
    assert [delta.text async for delta in generation] == ["b", "c"]
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_unread_deltas_are_bounded(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    """Exceeding the bound frees the slots. A client that reads again gets the unread deltas, then the error."""
    generation = start(engine, tokenizer, 2, max_unread_bytes=100)
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
    generation.close()


class FloodEngine(FakeEngine):
    """Delivers the same items to every request, all in one call."""

    def __init__(self, items: Iterable[TokenOutput | Exception]) -> None:
        super().__init__()
        self._items = items

    def submit(self, request: Request, sink: OutputSink) -> None:
        asyncio.get_running_loop().call_soon(self._flood, request, sink, context=Context())

    def _flood(self, request: Request, sink: OutputSink) -> None:
        for item in self._items:
            sink.put(item)


def outputs(num_outputs: int, *token_ids: int) -> Iterator[TokenOutput]:
    """Yields equal outputs, then the end."""
    for _ in range(num_outputs):
        yield TokenOutput(token_ids)
    yield TokenOutput(finish_reason=FinishReason.LENGTH)


async def read_all(generation: Generation) -> list[Delta]:
    try:
        return [delta async for delta in generation]
    finally:
        generation.close()


async def test_waiting_reader_is_never_too_slow(tokenizer: Tokenizer) -> None:
    """The server has fallen behind then, and joins the deltas."""
    count = 100
    engine = FloodEngine(outputs(count, *[5] * 1000))
    (delta,) = await read_all(start(engine, tokenizer))
    assert delta.text == "b" * (1000 * count)
    assert 9 * len(delta.text) > 3 * generation.MAX_UNREAD_BYTES
    assert (len(delta.token_ids), delta.finish_reason) == (1000 * count, FinishReason.LENGTH)


async def test_deltas_of_several_choices_are_joined_apart(tokenizer: Tokenizer) -> None:
    engine = FloodEngine(list(outputs(1000, 5)))
    deltas = await read_all(start(engine, tokenizer, 3))
    assert [(delta.index, delta.text) for delta in deltas] == [(i, "b" * 1000) for i in range(3)]


async def test_reader_that_catches_up_does_not_block_the_event_loop(tokenizer: Tokenizer) -> None:
    generation = start(FloodEngine(list(outputs(100, 5))), tokenizer, 100)
    await asyncio.sleep(0)
    reading = asyncio.create_task(read_all(generation))
    num_turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert len(await reading) == 100
    assert num_turns >= 100


async def test_error_comes_after_earlier_deltas(tokenizer: Tokenizer) -> None:
    items: list[TokenOutput | Exception] = [*[TokenOutput((5,))] * 10, RuntimeError("it broke")]
    generation = start(FloodEngine(items), tokenizer)
    assert (await anext(generation)).text == "b" * 10
    with pytest.raises(RuntimeError, match="it broke"):
        await anext(generation)
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_bug_in_one_choice_is_an_error_of_its_request(tokenizer: Tokenizer) -> None:
    """It must not interrupt the engine, which delivers to other requests in the same call."""
    engine = FloodEngine([TokenOutput((5,)), TokenOutput((10**6,)), TokenOutput((5,))])
    generation = start(engine, tokenizer)
    assert (await anext(generation)).text == "b"
    with pytest.raises(IndexError):
        await anext(generation)


async def test_error_of_submit_is_raised_by_the_stream(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    class Refusing(FakeEngine):
        def submit(self, request: Request, sink: OutputSink) -> None:
            raise EngineDeadError("the engine is not running")

    with pytest.raises(EngineDeadError):
        await anext(start(Refusing(), tokenizer))


async def test_id_in_use_does_not_abort_the_other_request(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    class Refusing(FakeEngine):
        aborted: Sequence[str] = ()

        def submit(self, request: Request, sink: OutputSink) -> None:
            raise ValueError("in use")

        def abort(self, request_id: str) -> None:
            self.aborted = (*self.aborted, request_id)

    refusing = Refusing()
    with pytest.raises(ValueError, match="in use"):
        await anext(start(refusing, tokenizer))
    assert not refusing.aborted


class NotingObserver(Observer):
    """Notes the id of the HTTP request in whose context the engine's requests end."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def on_end(self, record: RequestRecord) -> None:
        self.ids.append(request_id.get())


async def test_request_ends_in_the_context_of_its_http_request(tokenizer: Tokenizer) -> None:
    """Spans find their parent there, though the engine delivers in another context."""
    engine, observer = FloodEngine(list(outputs(3, 5))), NotingObserver()
    metrics = Metrics(lambda: engine.stats, observers=[observer])
    token = request_id.set("req-1")
    generation = start(engine, tokenizer, 2, tracker=metrics.requests)
    request_id.reset(token)
    await read_all(generation)
    assert observer.ids == ["req-1", "req-1"]


async def test_collected_response_takes_the_memory_of_its_tokens(tokenizer: Tokenizer) -> None:
    num_tokens = 4_000
    tracemalloc.start()
    try:
        (whole,) = await collect(start(FloodEngine(outputs(num_tokens, 5)), tokenizer))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole.text == "b" * num_tokens
    assert whole.token_ids == (5,) * num_tokens
    assert peak < 48 * num_tokens


@pytest.mark.parametrize("sends_ids", [False, True])
async def test_taken_tokens_count_as_sent(engine: FakeEngine, tokenizer: Tokenizer, sends_ids: bool) -> None:
    """Unread tokens don't count, and half a character counts only if clients receive ids."""
    engine.says = [5, *EURO, 6, 7]
    params = SamplingParams(max_tokens=6)
    alone = start(engine, tokenizer, response_id="alone", params=params, sends_ids=sends_ids)
    counts = [delta.num_sent async for delta in alone]
    assert counts == ([1, 2, 3, 4, 5, 6] if sends_ids else [1, 1, 1, 4, 5, 6])
    generation = start(engine, tokenizer, params=params, sends_ids=sends_ids)
    await until(lambda: len(engine.given.get("id-0", ())) == 6)
    assert generation.sent.num_tokens[0] == 0, "no delta was taken"
    await anext(generation)
    assert generation.sent.num_tokens[0] == 6
    generation.close()


async def test_tool_call_counts_as_sent_once_its_pieces_are(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    text = call_text("f", '{"a": 1}')
    engine.says = tokenizer.encode(text, control_tokens=False)
    params = SamplingParams(max_tokens=500, end_token_ids=tokenizer.end_token_ids)
    generation = start(engine, tokenizer, params=params, may_call=True)
    arguments, num_tokens = "", 0
    async for delta in generation:
        num_tokens += len(delta.token_ids)
        arguments += "".join(piece.arguments for piece in delta.calls)
        if not delta.calls and not arguments:
            assert generation.sent.num_tokens[0] == 0, "nothing is known of it yet"
    assert arguments == '{"a": 1}'
    assert generation.sent.num_tokens[0] == num_tokens == len(engine.says) + 1
    generation.close()


async def test_a_reader_that_waits_is_offered_each_delta_before_it_is_woken(
    engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    """It takes "c" and "d" at once, so that its task gets the others only."""
    generation = start(engine, tokenizer, params=SamplingParams(max_tokens=5))
    taken: list[str] = []

    def take(index: int, text: str, num_tokens: int) -> bool:
        assert (index, num_tokens) == (0, 1)
        if text in "cd":
            taken.append(text)
        return text in "cd"

    first = await generation.next_within(None, take)
    assert first is not None
    assert (first.text, list(generation.sent.num_tokens)) == ("b", [1])
    second = await generation.next_within(None, take)
    assert second is not None
    assert (second.text, taken, list(generation.sent.num_tokens)) == ("e", ["c", "d"], [4])
    last = await generation.next_within(None, take)
    assert last is not None
    assert (last.text, last.finish_reason) == ("f", FinishReason.LENGTH), "the last delta is not offered"
    generation.close()


async def test_a_reader_that_does_not_wait_is_offered_nothing(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    generation = start(engine, tokenizer, params=SamplingParams(max_tokens=4))
    taken: list[str] = []

    def take(index: int, text: str, num_tokens: int) -> bool:
        taken.append(text)
        return True

    await until(lambda: not engine.running)
    delta = await generation.next_within(None, take)
    assert delta is not None
    assert (delta.text, taken) == ("bcde", [])
    generation.close()


async def offered(tokenizer: Tokenizer, outputs: Sequence[TokenOutput], **fields: Any) -> list[str]:
    """Returns what a reader is offered that takes every text, until it gets a delta."""
    generation, texts = start(FloodEngine(outputs), tokenizer, **fields), list[str]()
    assert await generation.next_within(None, lambda _, text, __: texts.append(text) is None) is not None
    generation.close()
    return texts


@pytest.mark.parametrize("fields", [{}, {"stop": ("zz",)}], ids=["plain", "stop"])
@pytest.mark.parametrize(
    "more",
    [
        {"finish_reason": FinishReason.LENGTH},
        {"logprobs": (TokenLogprobs(-1.0),)},
        {"prompt_logprobs": (None,)},
        {"num_cached": 1},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_only_text_alone_is_offered(tokenizer: Tokenizer, fields: dict[str, Any], more: dict[str, Any]) -> None:
    outputs = [TokenOutput((5,)), TokenOutput((5,))._replace(**more)]
    assert await offered(tokenizer, outputs, **fields) == ["b"]


async def test_a_tool_call_is_not_offered(tokenizer: Tokenizer) -> None:
    call = tokenizer.encode(call_text("f", '{"a": 1}'), control_tokens=False)
    assert await offered(tokenizer, [TokenOutput(tuple(call))], may_call=True) == []


async def test_an_error_of_the_callback_ends_the_request(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    generation = start(engine, tokenizer, params=SamplingParams(max_tokens=9))
    with pytest.raises(ZeroDivisionError):
        await generation.next_within(None, lambda *_: bool(1 // 0))
    assert not engine.running
    generation.close()


async def test_items_come_in_order_whether_or_not_a_reader_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert len(mailbox) == 2
    assert [await mailbox.get(None), await mailbox.get(None)] == [1, 2]
    waiting = asyncio.create_task(mailbox.get(None))
    await asyncio.sleep(0)
    mailbox.put(3)
    mailbox.put(4)
    assert [await waiting, await mailbox.get(None)] == [3, 4]
    assert len(mailbox) == 0


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_a_reader_that_is_cancelled_loses_nothing(is_waiting: bool) -> None:
    mailbox: Mailbox[int] = Mailbox()
    if not is_waiting:
        mailbox.put(1)
    waiting = asyncio.create_task(mailbox.get(None))
    await asyncio.sleep(0)
    if is_waiting:
        mailbox.put(1)
    waiting.cancel()  # when it has been woken, and before it takes anything
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await mailbox.get(None) == 1


async def test_a_reader_gets_nothing_after_the_timeout_of_its_own_wait() -> None:
    mailbox: Mailbox[int] = Mailbox()
    with held_time() as time:
        first = asyncio.create_task(mailbox.get(0.1))
        await time.skip(0.0)  # it waits
        await time.skip(0.06)
        mailbox.put(1)
        assert await first == 1
        second = asyncio.create_task(mailbox.get(0.1))
        await time.skip(0.0)
        await time.skip(0.099)
        assert not second.done()
        await time.skip(0.002)
        assert await second is None
        mailbox.put(2)
        assert await mailbox.get(0.1) == 2


async def test_without_a_timeout_a_reader_waits_forever() -> None:
    mailbox: Mailbox[int] = Mailbox()
    waiting = asyncio.create_task(mailbox.get(None))
    with held_time() as time:
        await time.skip(3600.0)
    assert not waiting.done()
    assert mailbox.has_reader
    mailbox.put(1)
    assert await waiting == 1
    assert not mailbox.has_reader
