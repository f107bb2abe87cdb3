"""Tests of the engine's thread and the delivery of outputs, on a fake runner."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from fake_runner import FakeRunner
from roost.engine import engine_core
from roost.engine.async_engine import AsyncEngine
from roost.engine.engine_core import EngineCore
from roost.engine.prefix_cache.cache import PrefixCache, PrefixKey
from roost.engine.scheduling.scheduler import Plan, Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.errors import (
    EngineDeadError,
    EngineStoppedError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    UnknownRequestError,
)
from roost.engine.types.request import Batch, FinishReason, Pending, Request, TokenOutput
from roost.engine.types.sampling_params import SamplingParams
from roost.engine.types.snapshot import SavedState, Snapshot


class SlowRunner(FakeRunner):
    """Takes a moment per batch, as a device does."""

    def run(self, batch: Batch) -> Pending:
        time.sleep(0.001)
        return super().run(batch)


class FailingRunner(FakeRunner):
    """Dies at its third batch."""

    def run(self, batch: Batch) -> Pending:
        if len(self.batches) == 2:
            raise RuntimeError("the device caught fire")
        return super().run(batch)


@asynccontextmanager
async def running(runner: FakeRunner | None = None, slots: int = 2, max_queue: int = 100) -> AsyncIterator[AsyncEngine]:
    core = EngineCore(Scheduler(slots, max_queue, StepLimits(64)), runner or SlowRunner())
    engine = AsyncEngine(lambda: core)
    engine.start()
    await engine.wait_ready()
    try:
        yield engine
    finally:
        await engine.stop()


class QueueSink:
    """Queues the outputs of one request."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[TokenOutput | Exception] = asyncio.Queue()

    def put(self, item: TokenOutput | Exception) -> None:
        self.items.put_nowait(item)


async def outputs_of(sink: QueueSink) -> list[TokenOutput]:
    """Returns the outputs up to the last one."""
    outputs: list[TokenOutput] = []
    while not outputs or outputs[-1].finish_reason is None:
        item = await sink.items.get()
        assert isinstance(item, TokenOutput)
        outputs.append(item)
    return outputs


async def generate(engine: AsyncEngine, request: Request) -> AsyncGenerator[TokenOutput]:
    """Outputs of a request as they come; closing this aborts it."""
    sink = QueueSink()
    engine.submit(request, sink)
    try:
        while True:
            item = await sink.items.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if item.finish_reason is not None:
                return
    finally:
        engine.abort(request.id)


async def collect(engine: AsyncEngine, request: Request) -> list[int]:
    return [token async for output in generate(engine, request) for token in output.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for the engine's thread to get there."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@dataclass
class Clock:
    """A clock that only the test moves."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the steps."""
    clock = Clock()
    monkeypatch.setattr(engine_core, "time", clock)
    return clock


async def test_many_streams_at_once() -> None:
    async with running() as engine:
        requests = [Request(str(i), (100 * i,), SamplingParams(max_tokens=5)) for i in range(10)]
        outputs = await asyncio.gather(*(collect(engine, r) for r in requests))
        assert outputs == [[100 * i + k for k in range(1, 6)] for i in range(10)]
        assert engine.stats.num_running == 0


async def test_abort_frees_the_slot() -> None:
    async with running(slots=1) as engine:
        stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
        assert (await anext(stream)).token_ids[0] == 2
        assert engine.stats.num_running == 1
        await stream.aclose()
        await until(lambda: engine.stats.num_running == 0)
        assert await collect(engine, Request("next", (7,), SamplingParams(max_tokens=1))) == [8]


async def test_cancelled_reader_frees_its_slot() -> None:
    async with running(slots=1) as engine:
        task = asyncio.create_task(collect(engine, Request("endless", (1,), SamplingParams(max_tokens=None))))
        await until(lambda: engine.stats.num_running == 1)
        task.cancel()
        await until(lambda: engine.stats.num_running == 0)


async def test_abort_from_outside_ends_the_stream() -> None:
    async with running() as engine:
        outputs = []
        async for output in generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None))):
            outputs.append(output)
            if len(outputs) == 3:
                engine.abort("endless")
        assert outputs[-1].finish_reason is FinishReason.ABORT
        await until(lambda: engine.stats.num_running == 0)
        engine.abort("endless")  # nothing is left to abort


def block_until(condition: Callable[[], bool]) -> None:
    """Keeps the event loop busy until the engine's thread gets there."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def test_an_event_loop_that_falls_behind_gets_several_steps_at_once() -> None:
    async with running(slots=1) as engine:
        sink = QueueSink()
        engine.submit(Request("a", (1,), SamplingParams(max_tokens=50)), sink)
        block_until(lambda: engine.stats.generated_tokens == 50)
        outputs = await outputs_of(sink)
        assert len(outputs) <= 2  # the last step may not have been handed over yet
        assert [token for output in outputs for token in output.token_ids] == list(range(2, 52))
        assert outputs[-1].finish_reason is FinishReason.LENGTH


async def test_an_error_is_an_output_of_its_own_behind_the_tokens(clock: Clock) -> None:
    async with running(slots=1) as engine:
        sink = QueueSink()
        engine.submit(Request("a", (1,), SamplingParams(max_tokens=None), deadline=clock.now + 1), sink)
        block_until(lambda: engine.stats.generated_tokens > 5)
        clock.now += 1
        block_until(lambda: engine.stats.num_running == 0)
        *tokens, end = await outputs_of(sink)
        assert 1 <= len(tokens) <= 2
        assert len(tokens[0].token_ids) > 1
        assert [output.finish_reason for output in tokens] == [None] * len(tokens)
        assert (end.token_ids, end.finish_reason) == ((), FinishReason.ERROR)


async def test_an_abort_comes_behind_the_tokens_and_is_the_last() -> None:
    runner = SlowRunner()
    async with running(runner, slots=1) as engine:
        sink = QueueSink()
        engine.submit(Request("a", (1,), SamplingParams(max_tokens=None)), sink)
        await until(lambda: sink.items.qsize() > 20)
        engine.abort("a")
        engine.abort("a")
        await until(lambda: engine.stats.num_running == 0)
        outputs = [sink.items.get_nowait() for _ in range(sink.items.qsize())]
        *tokens, end = [output for output in outputs if isinstance(output, TokenOutput)]
        assert len(tokens) == len(outputs) - 1
        assert [output.finish_reason for output in tokens] == [None] * len(tokens)
        assert (end.token_ids, end.finish_reason) == ((), FinishReason.ABORT)


async def test_full_queue_is_reported_to_the_new_request() -> None:
    async with running(slots=1, max_queue=1) as engine:
        streams = [generate(engine, Request(n, (1,), SamplingParams(max_tokens=None))) for n in "ab"]
        await anext(streams[0])
        waiting = asyncio.create_task(anext(streams[1]))
        await until(lambda: engine.stats.num_waiting == 1)
        with pytest.raises(QueueFullError):
            await collect(engine, Request("c", (1,)))
        await streams[0].aclose()
        assert (await waiting).token_ids[0] == 2


async def test_id_in_use_is_rejected() -> None:
    async with running() as engine:
        stream = generate(engine, Request("a", (1,), SamplingParams(max_tokens=None)))
        await anext(stream)
        with pytest.raises(ValueError, match="'a' is in use"):
            await collect(engine, Request("a", (1,)))


async def test_failed_step_ends_every_request_and_the_engine() -> None:
    async with running(FailingRunner()) as engine:
        requests = [Request(n, (1,), SamplingParams(max_tokens=None)) for n in "abc"]
        ends = await asyncio.gather(*(collect(engine, r) for r in requests), return_exceptions=True)
        assert [type(e) for e in ends] == [EngineDeadError] * 3
        assert not engine.is_ready
        assert isinstance(engine.error, RuntimeError)
        with pytest.raises(EngineDeadError):
            await collect(engine, Request("d", (1,)))


async def test_stop_ends_unfinished_requests_and_the_thread() -> None:
    others = set(threading.enumerate())
    async with running() as engine:
        stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
        await anext(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError, match="stopped"):
            async for _ in stream:
                pass
    assert all(thread.name != "engine" for thread in set(threading.enumerate()) - others)


async def test_error_of_build_is_raised_by_wait_ready() -> None:
    def build() -> EngineCore:
        raise RuntimeError("no such checkpoint")

    engine = AsyncEngine(build)
    engine.start()
    with pytest.raises(RuntimeError, match="no such checkpoint"):
        await engine.wait_ready()
    assert not engine.is_ready


async def test_engine_is_not_ready_before_it_is_built() -> None:
    gate = threading.Event()

    def build() -> EngineCore:
        gate.wait()
        return EngineCore(Scheduler(1, 1, StepLimits(64)), FakeRunner())

    engine = AsyncEngine(build)
    engine.start()
    assert not engine.is_ready
    with pytest.raises(EngineDeadError):
        await collect(engine, Request("a", (1,)))
    gate.set()
    await engine.wait_ready()
    assert engine.is_ready
    await engine.stop()


class StuckRunner(FakeRunner):
    """Returns from its third batch only when the gate is open.

    Attributes:
      is_stuck: Set when it waits for the gate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.is_stuck = threading.Event()

    def run(self, batch: Batch) -> Pending:
        if len(self.batches) == 2:
            self.is_stuck.set()
            self.gate.wait()
        return super().run(batch)


async def test_engine_with_a_stuck_step_can_fail() -> None:
    runner = StuckRunner()
    async with running(runner) as engine:
        assert engine.check() is None
        reader = asyncio.create_task(collect(engine, Request("a", (1,), SamplingParams(max_tokens=None))))
        await until(runner.is_stuck.is_set)
        step = engine.check()
        await asyncio.sleep(0.05)
        assert engine.check() == step
        assert not engine.is_stuck
        engine.fail(EngineDeadError("stuck"))
        with pytest.raises(EngineDeadError, match="stuck"):
            await reader
        assert engine.is_stuck
        runner.gate.set()
        await until(lambda: not engine.is_stuck)
        assert str(engine.error) == "stuck", "what comes after does not change why"


@dataclass
class FakeHosts:
    """Other hosts, all of which are there until `failure` is set."""

    failure: EngineDeadError | None = None


async def test_lost_host_ends_the_engine_in_a_step() -> None:
    """The step may wait for that host for a long time."""
    runner, hosts = StuckRunner(), FakeHosts()
    engine = AsyncEngine(lambda: EngineCore(Scheduler(1, 1, StepLimits(64)), runner, hosts=hosts))
    engine.start()
    await engine.wait_ready()
    reader = asyncio.create_task(collect(engine, Request("a", (1,), SamplingParams(max_tokens=None))))
    await until(runner.is_stuck.is_set)
    assert engine.error is None
    hosts.failure = EngineDeadError("a host has been lost")
    engine.check()
    with pytest.raises(EngineDeadError, match="a host has been lost"):
        await reader
    assert engine.error is hosts.failure
    runner.gate.set()
    await engine.stop()


async def test_stop_does_not_wait_for_a_stuck_step() -> None:
    runner = StuckRunner()
    async with running(runner) as engine:
        reader = asyncio.create_task(collect(engine, Request("a", (1,), SamplingParams(max_tokens=None))))
        await until(runner.is_stuck.is_set)
        await engine.stop(0.05)
        with pytest.raises(EngineDeadError, match="stopped"):
            await reader
        assert engine.is_stuck
        runner.gate.set()


async def test_timeouts_while_others_run(clock: Clock) -> None:
    async with running(slots=1) as engine:
        now = clock.now
        long = generate(engine, Request("long", (1,), SamplingParams(max_tokens=None), deadline=now + 5))
        await anext(long)
        impatient = asyncio.create_task(collect_or_raise(engine, Request("impatient", (1,), start_by=now + 2)))
        await until(lambda: engine.stats.num_waiting == 1)
        await steps(engine)
        assert engine.stats.num_waiting == 1
        clock.now = now + 2
        with pytest.raises(QueueTimeoutError):
            await impatient
        await steps(engine)
        assert engine.stats.num_running == 1
        clock.now = now + 5
        errors = [output.error async for output in long]
        assert errors[:-1] == [None] * (len(errors) - 1)
        assert isinstance(errors[-1], RequestTimeoutError)
        await until(lambda: engine.stats.num_running == 0)


async def steps(engine: AsyncEngine) -> None:
    """Waits for some steps of a busy engine."""
    num_steps = engine.stats.steps
    await until(lambda: engine.stats.steps > num_steps + 3)


async def collect_or_raise(engine: AsyncEngine, request: Request) -> None:
    async for output in generate(engine, request):
        if output.error is not None:
            raise output.error


class SlowTier:
    """Disk tier whose fetches end when the test says so."""

    num_bytes = num_errors = 0
    max_fetches = 8

    def __init__(self) -> None:
        self.searches: list[Callable[[Snapshot | None], None]] = []

    def fetch(self, prompt: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        self.searches.append(done)

    def store(self, prompt: PrefixKey, snapshots: object) -> None: ...

    def close(self) -> None: ...


class CountingScheduler(Scheduler):
    num_planned = 0

    def schedule(self, now: float) -> Plan:
        self.num_planned += 1
        return super().schedule(now)


@asynccontextmanager
async def running_on(tier: SlowTier) -> AsyncIterator[tuple[AsyncEngine, CountingScheduler]]:
    scheduler = CountingScheduler(2, 100, StepLimits(64), cache=PrefixCache(64, 10**6, tier))
    engine = AsyncEngine(lambda: EngineCore(scheduler, FakeRunner()))
    engine.start()
    await engine.wait_ready()
    yield engine, scheduler
    await engine.stop()


async def test_nothing_is_scheduled_while_all_wait_for_the_disk() -> None:
    """A result of the disk wakes the engine; until then the request waits, and others are served."""
    async with running_on(tier := SlowTier()) as (engine, scheduler):
        reader = asyncio.create_task(collect(engine, Request("a", (1, 2), SamplingParams(max_tokens=2))))
        await until(lambda: engine.stats.num_waiting == 1 and len(tier.searches) == 1)
        await asyncio.sleep(0.05)
        assert scheduler.num_planned <= 2
        scored = SamplingParams(max_tokens=2, prompt_logprobs=0)
        stream = generate(engine, Request("b", (5,), scored))
        assert [token_id async for output in stream for token_id in output.token_ids] == [6, 7]
        assert engine.stats.num_waiting == 1
        threading.Thread(target=tier.searches[0], args=(None,)).start()
        assert await reader == [3, 4]


async def test_timeouts_while_all_wait_for_the_disk() -> None:
    async with running_on(tier := SlowTier()) as (engine, _):
        with pytest.raises(RequestTimeoutError):
            await collect_or_raise(engine, Request("a", (1,), deadline=time.monotonic() + 0.2))
        num_searches = len(tier.searches)  # none if the deadline passed before the first step
        reader = asyncio.create_task(collect(engine, Request("b", (1,))))
        await until(lambda: len(tier.searches) > num_searches)
        reader.cancel()
        await until(lambda: engine.stats.num_waiting == 0)


class GatedRunner(FakeRunner):
    """Notes each batch, and runs none while its gate is closed."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self._is_waiting = threading.Event()
        self._log = log

    def run(self, batch: Batch) -> Pending:
        self._log.append("step")
        if not self.gate.is_set():
            self._is_waiting.set()
            assert self.gate.wait(60)
        return super().run(batch)

    async def close_gate(self) -> None:
        """Closes the gate, and waits until the engine's thread stands before it: what comes now is queued."""
        self.gate.clear()
        await until(self._is_waiting.is_set)


class LoggingCore(EngineCore):
    """Notes each save among the batches."""

    def __init__(self, log: list[str], runner: GatedRunner) -> None:
        super().__init__(Scheduler(2, 100, StepLimits(64), cache=PrefixCache(64, 10**6)), runner)
        self._log = log

    def save(self, request_id: str, num_generated: int | None = None) -> SavedState:
        self._log.append("save")
        return super().save(request_id, num_generated)


async def test_step_waits_for_one_save() -> None:
    """Without running requests, saves wait for nothing."""
    log: list[str] = []
    runner = GatedRunner(log)
    engine = AsyncEngine(lambda: LoggingCore(log, runner))
    engine.start()
    await engine.wait_ready()
    stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
    await anext(stream)
    await runner.close_gate()
    saves = [asyncio.create_task(engine.save("endless", 1)) for _ in range(20)]
    unknown = asyncio.create_task(engine.save("unknown"))
    await asyncio.sleep(0)  # all are in the inbox now
    del log[:]
    runner.gate.set()
    states = await asyncio.gather(*saves)
    assert [tuple(state.token_ids) for state in states] == [(1, 2)] * 20
    with pytest.raises(UnknownRequestError):
        await unknown
    await stream.aclose()
    assert log.count("save") == 21
    assert "save save" not in " ".join(log)
    await until(lambda: engine.stats.num_running == 0)
    ended = await asyncio.gather(*(engine.save("endless") for _ in range(20)))
    assert {tuple(state.token_ids[:2]) for state in ended} == {(1, 2)}
    await engine.stop()


class AddingCore(LoggingCore):
    """Notes each request that is added, too."""

    def add(self, request: Request) -> None:
        self._log.append("add")
        super().add(request)


async def test_step_waits_for_a_bounded_number_of_commands() -> None:
    """Clients that connect and disconnect quickly do not delay it further."""
    log: list[str] = []
    runner = GatedRunner(log)
    engine = AsyncEngine(lambda: AddingCore(log, runner))
    engine.start()
    await engine.wait_ready()
    stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
    await anext(stream)
    await runner.close_gate()
    others = [
        asyncio.create_task(collect(engine, Request(f"r{n}", (1,), SamplingParams(max_tokens=1)))) for n in range(500)
    ]
    await asyncio.sleep(0)
    for other in others[1:]:
        other.cancel()
    await asyncio.gather(*others[1:], return_exceptions=True)
    del log[:]
    runner.gate.set()
    assert await others[0] == [2]
    await until(lambda: log.count("add") == 500)
    runs = " ".join(log).split("step")
    assert max(run.count("add") for run in runs) <= 64
    await stream.aclose()
    await engine.stop()


async def test_cancelled_save_is_skipped() -> None:
    log: list[str] = []
    runner = GatedRunner(log)
    engine = AsyncEngine(lambda: LoggingCore(log, runner))
    engine.start()
    await engine.wait_ready()
    stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
    await anext(stream)
    await runner.close_gate()
    saves = [asyncio.create_task(engine.save("endless")) for _ in range(20)]
    await asyncio.sleep(0)
    for save in saves[:19]:
        save.cancel()
    await asyncio.gather(*saves[:19], return_exceptions=True)
    del log[:]
    runner.gate.set()
    await saves[19]
    assert log.count("save") == 1
    await stream.aclose()
    await engine.stop()


async def test_checkpoints_lose_no_token() -> None:
    """The request has no end of its own, so that it runs at each checkpoint."""
    engine = AsyncEngine(lambda: LoggingCore([], GatedRunner([])))
    engine.start()
    await engine.wait_ready()
    stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
    tokens: list[int] = []
    counts: list[int] = []
    async for output in stream:
        tokens += output.token_ids
        if len(counts) < 20:
            counts.append((await engine.snapshot_request("endless")).num_tokens)
        elif len(tokens) > counts[-1]:
            break
    await stream.aclose()
    with pytest.raises(UnknownRequestError):
        await engine.snapshot_request("endless")
    assert tokens == list(range(2, 2 + len(tokens)))
    assert counts == sorted(counts)
    await engine.stop()


async def test_a_paused_engine_delivers_its_last_step_and_serves_reads() -> None:
    """So its checkpoints count no token that was not delivered."""
    async with running() as engine:
        sink = QueueSink()
        engine.submit(Request("endless", (1,), SamplingParams(max_tokens=None)), sink)
        first = await sink.items.get()
        assert isinstance(first, TokenOutput)
        await engine.pause()
        tokens = list(first.token_ids)
        while not sink.items.empty():
            item = sink.items.get_nowait()
            assert isinstance(item, TokenOutput)
            tokens += item.token_ids
        checkpoint = await engine.snapshot_request("endless")
        assert tokens == [2 + k for k in range(checkpoint.num_tokens)]
        for _ in range(3):
            assert (await engine.snapshot_request("endless")).num_tokens == checkpoint.num_tokens
        assert sink.items.empty()


async def test_stop_ends_pending_saves() -> None:
    log: list[str] = []
    runner = GatedRunner(log)
    engine = AsyncEngine(lambda: LoggingCore(log, runner))
    engine.start()
    await engine.wait_ready()
    stream = generate(engine, Request("endless", (1,), SamplingParams(max_tokens=None)))
    await anext(stream)
    await runner.close_gate()
    saves = [asyncio.create_task(engine.save("endless")) for _ in range(20)]
    await asyncio.sleep(0)
    engine.join(0)  # queues the stop behind the saves
    runner.gate.set()
    results = await asyncio.gather(*saves, return_exceptions=True)
    await engine.stop()
    assert {type(result) for result in results} <= {EngineStoppedError, SavedState}
    assert any(isinstance(result, EngineStoppedError) for result in results)
