"""The engine's steps under random traffic, with tokens that are known in advance."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from fake_runner import FakeRunner
from hypothesis import given
from roost.engine.engine_core import EngineCore
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.errors import EngineDeadError, NumericError
from roost.engine.types.request import (
    Batch,
    DecodeBatch,
    FinishReason,
    FirstToken,
    Pending,
    PrefillBatch,
    Request,
    RowResult,
    TokenOutput,
)
from roost.engine.types.sampling_params import NO_TOKEN, SamplingParams

PROMPT_LENGTHS = st.integers(1, 200)


@dataclass
class Client:
    """Tokens that one request should get, and those that it got."""

    first: int
    max_tokens: int
    stop_after: int
    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None

    @property
    def expected(self) -> list[int]:
        return list(range(self.first, self.first + min(self.max_tokens, self.stop_after)))


def make_core(
    slots: int, decode_steps: int = 1, prefill_layer_slices: int = 1, itl_target_s: float | None = None
) -> tuple[EngineCore, Scheduler, FakeRunner]:
    limits = StepLimits(
        prefill_chunk=128,
        prefill_rows=2 if prefill_layer_slices == 1 else 1,
        prefill_layer_slices=prefill_layer_slices,
        decode_steps=decode_steps,
        decode_rows=(1, 2, slots),
        itl_target_s=itl_target_s,
    )
    scheduler, runner = Scheduler(slots, 1000, limits), FakeRunner()
    return EngineCore(scheduler, runner), scheduler, runner


@given(
    slots=st.integers(1, 5),
    decode_steps=st.integers(1, 4),
    prefill_layer_slices=st.integers(1, 3),
    itl_target_s=st.sampled_from([None, 0.0]),
    arrivals=st.lists(st.tuples(PROMPT_LENGTHS, st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12),
    aborts=st.sets(st.integers(0, 11)),
    gaps=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_every_request_gets_its_own_tokens(
    slots: int,
    decode_steps: int,
    prefill_layer_slices: int,
    itl_target_s: float | None,
    arrivals: list[tuple[int, int, int]],
    aborts: set[int],
    gaps: list[int],
) -> None:
    """This holds for arrivals, ends and aborts in any order, and slots stay disjoint and complete."""
    core, scheduler, _ = make_core(slots, decode_steps, prefill_layer_slices, itl_target_s)
    clients: dict[str, Client] = {}

    def step() -> None:
        for name, output in core.step():
            client = clients[name]
            assert client.reason is None, "an output after the end"
            client.tokens += output.token_ids
            client.reason = output.finish_reason
        owned = [*slots_of(scheduler).values(), *scheduler.slots.retained]
        assert sorted([*owned, *scheduler.slots.free]) == list(range(slots))

    for index, ((length, max_tokens, stop_after), gap) in enumerate(zip(arrivals, gaps, strict=False)):
        last = 1000 * (index + 1)
        clients[str(index)] = Client(last + 1, max_tokens, stop_after)
        params = SamplingParams(max_tokens=max_tokens, stop_token_ids=(last + stop_after,))
        core.add(Request(str(index), (0,) * (length - 1) + (last,), params, stepwise=length % 5 == 0))
        for _ in range(gap):
            step()
        if index in aborts:
            core.abort(str(index))
    for _ in range(10_000):
        if core.is_idle:
            break
        step()
    assert core.is_idle
    assert len(scheduler.slots.free) == slots
    for index, client in enumerate(clients.values()):
        if index in aborts and client.reason is None:
            assert client.tokens == client.expected[: len(client.tokens)]
        else:
            assert client.tokens == client.expected
            stopped = client.stop_after <= client.max_tokens
            assert client.reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)


def slots_of(scheduler: Scheduler) -> dict[str, int]:
    return {name: running.slot for name, running in scheduler.running.items()}


def test_slot_of_a_given_up_prefill_is_used_at_once() -> None:
    """A state moves there, though the device has run some slices of the prefill."""
    core, scheduler, runner = make_core(5, prefill_layer_slices=3, itl_target_s=0.0)  # prefill begins at once
    for name, max_tokens in (("a", 6), ("b", 500), ("c", 500)):
        core.add(Request(name, (1,), SamplingParams(max_tokens=max_tokens)))

    def last_decoded() -> list[str]:
        batch = runner.batches[-1] if runner.batches else None
        return [request.id for request in batch.requests] if isinstance(batch, DecodeBatch) else []

    while last_decoded() != ["b", "c"]:
        core.step()
    core.add(Request("d", (1,) * 64))
    while isinstance(runner.batches[-1], DecodeBatch):
        core.step()
    assert slots_of(scheduler) == {"b": 1, "c": 2, "d": 0}
    core.abort("d")
    core.step()
    assert slots_of(scheduler) == {"b": 1, "c": 0}


def test_one_batch_is_in_flight_and_its_tokens_come_a_step_later() -> None:
    core, _, runner = make_core(1)
    core.add(Request("a", (5,), SamplingParams(max_tokens=2)))
    assert core.step() == []
    assert [type(b) for b in runner.batches] == [PrefillBatch]
    ((_, first),) = core.step()
    assert [type(b) for b in runner.batches] == [PrefillBatch, DecodeBatch]
    ((_, second),) = core.step()
    assert (first.token_ids, second.token_ids) == ((6,), (7,))
    assert len(runner.batches) == 2
    assert core.is_idle


def test_stats_count_tokens_and_steps() -> None:
    core, _, _ = make_core(2)
    core.add(Request("a", (5, 6, 7), SamplingParams(max_tokens=2)))
    core.add(Request("b", (9,), SamplingParams(max_tokens=3)))
    assert (core.stats.num_waiting, core.stats.num_running, core.stats.slots) == (2, 0, 2)
    core.step()
    assert (core.stats.num_waiting, core.stats.num_running) == (0, 2)
    while not core.is_idle:
        core.step()
    stats = core.stats
    assert (stats.prompt_tokens, stats.generated_tokens) == (4, 5)
    assert (stats.num_waiting, stats.num_running, stats.compiles_since_ready) == (0, 0, 0)
    assert sum(stats.step_tokens) == 4, "one prefill of 4 tokens, and three steps with 2, 2 and 1"
    assert stats.step_tokens[:2] == (1, 3)


def test_first_output_has_the_time_of_the_first_dispatch() -> None:
    """One request waits for the slot of the other, whose prompt takes two steps."""
    core, _, _ = make_core(1)
    core.add(Request("a", (5,) * 150, SamplingParams(max_tokens=2)))
    core.add(Request("b", (5,), SamplingParams(max_tokens=2)))
    before, started, ended = time.monotonic(), dict[str, list[float | None]](a=[], b=[]), dict[str, float]()
    core.step()
    dispatched = time.monotonic()
    while not core.is_idle:
        for name, output in core.step():
            started[name].append(output.started_at)
            ended[name] = time.monotonic()
    (first, none), (second, also_none) = started["a"], started["b"]
    assert none is also_none is None
    assert first is not None
    assert second is not None
    assert before <= first <= dispatched <= second <= ended["b"]


class BrokenRunner(FakeRunner):
    """Runner whose activations are not finite for prompts that end with `broken`, or for all if it is None."""

    broken: int | None = 666

    def _first_token(self, row: FirstToken) -> RowResult:
        result, last = super()._first_token(row), row.request.prompt_token_ids[-1]
        return RowResult((NO_TOKEN,)) if self.broken in (None, last) else result


def ask(core: EngineCore, name: str, last: int) -> TokenOutput:
    core.add(Request(name, (last,), SamplingParams(max_tokens=1)))
    ((_, output),) = [each for _ in range(2) for each in core.step()]
    return output


def test_non_finite_requests_in_a_row_end_the_engine() -> None:
    """The engine's own prompt fails as well. As long as other requests get tokens, nothing is suspected."""
    runner = BrokenRunner()
    core = EngineCore(Scheduler(1, 9, StepLimits(64)), runner)
    for number in range(20):
        assert isinstance(ask(core, f"a{number}", 666).error, NumericError)
        assert ask(core, f"b{number}", 5).token_ids == (6,)
    runner.broken = None
    for number in range(7):
        assert isinstance(ask(core, f"c{number}", 666).error, NumericError)
    assert core.is_idle
    ask(core, "d", 666)
    with pytest.raises(EngineDeadError, match="the activations of 8 requests in a row were not finite, and neither"):
        run_out(core)


def test_requests_that_fail_by_themselves_do_not_end_the_engine() -> None:
    """Not even if all choices of one request fail in one step; others are still served."""
    core = EngineCore(Scheduler(8, 99, StepLimits(64)), BrokenRunner())
    for number in range(30):
        core.add(Request(f"bad{number}", (666,), SamplingParams(max_tokens=2)))
    failed = run_out(core)
    assert sum(isinstance(output.error, NumericError) for _, output in failed) == 30
    assert {name for name, _ in failed} == {f"bad{number}" for number in range(30)}, "and nobody hears of the check"
    assert ask(core, "good", 5).token_ids == (6,)


def test_failures_of_imported_states_are_not_counted() -> None:
    runner = BrokenRunner()
    core = EngineCore(Scheduler(1, 9, StepLimits(64)), runner)
    for number in range(20):
        core.add(Request(f"a{number}", (666,), SamplingParams(max_tokens=1), state_is_imported=True))
        run_out(core)
    assert all(batch.chunks[0].request.id[0] == "a" for batch in runner.batches), "nothing was checked"


def run_out(core: EngineCore) -> list[tuple[str, TokenOutput]]:
    """Runs steps until the engine is idle, and returns the outputs."""
    outputs = []
    for _ in range(1000):
        if core.is_idle:
            return outputs
        outputs += core.step()
    raise AssertionError("the engine never comes to rest")


class TimedRunner(FakeRunner):
    """A runner whose batches take at least a tick of the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0

    def run(self, batch: Batch) -> Pending:
        results = super().run(batch)

        def wait() -> Sequence[RowResult]:
            start = time.monotonic()
            while time.monotonic() == start:
                pass
            self.waited_s += time.monotonic() - start
            return results()

        return wait


def test_the_time_of_waiting_for_the_device_is_counted() -> None:
    runner = TimedRunner()
    core = EngineCore(Scheduler(1, 1, StepLimits(prefill_chunk=128)), runner)
    core.add(Request("a", (1, 2, 3), SamplingParams(max_tokens=3)))
    stepped_s = 0.0
    while not core.is_idle:
        start = time.monotonic()
        core.step()
        stepped_s += time.monotonic() - start
    assert 0 < runner.waited_s <= core.stats.wait_seconds <= stepped_s
