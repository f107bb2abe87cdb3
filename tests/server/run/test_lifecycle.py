"""Server lifecycle: loading, ready, draining, stopped."""

import asyncio
import signal

import pytest
from fake_engine import FakeEngine
from fake_process import LONG, Process
from fake_server import until
from roost.engine import CheckpointError, EngineDeadError
from roost.server.generation.service import Service
from roost.server.run.lifecycle import Watchdog


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of lifecycles, so that no limit of theirs ends because the machine is busy."""
    clock = Clock()
    monkeypatch.setattr("roost.server.run.lifecycle.time", clock)
    return clock


async def checks(engine: FakeEngine, count: int = 3) -> None:
    """Waits until the lifecycle has checked the engine this often."""
    first = engine.num_checks
    await until(lambda: engine.num_checks >= first + count)


async def served(process: Process) -> None:
    """Waits until the server responds."""
    async with process.client() as client:
        assert (await client.get("/health")).status_code == 200


async def test_health_responds_before_the_engine_is_ready(engine: FakeEngine, service: Service) -> None:
    engine.ready.clear()
    announced = asyncio.Event()
    process = Process(service, announced.set)
    async with process.client() as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        assert not announced.is_set()
        engine.ready.set()
        await asyncio.wait_for(announced.wait(), 60)
        assert (await client.get("/health/ready")).status_code == 200
    process.signals.first = signal.SIGTERM
    assert await process.end() is None
    assert engine.stopped


async def test_a_failed_load_ends_the_server(engine: FakeEngine, service: Service) -> None:
    engine.ready.clear()
    process = Process(service)
    await served(process)
    engine.failure = CheckpointError("model.safetensors: no tensor lm_head")
    engine.ready.set()
    assert await process.end() is engine.failure


async def test_an_engine_that_dies_ends_the_server(engine: FakeEngine, service: Service) -> None:
    process = Process(service)
    last = await process.last_event(lambda: setattr(engine, "failure", RuntimeError("out of memory")))
    assert '"error"' in last
    assert await process.end() is engine.failure


async def test_shutdown_drains_open_requests(engine: FakeEngine, service: Service, clock: Clock) -> None:
    """Readiness fails at once, new requests are refused after the lag, and the last open request ends the server."""
    process = Process(service, lag_s=0.3)
    async with process.client() as client:
        assert (await client.get("/health/ready")).status_code == 200
        engine.gate.clear()
        going = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a"}))
        await until(lambda: engine.running)
        process.signals.first = signal.SIGTERM
        await until(lambda: service.open_requests.is_draining)
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        late = asyncio.create_task(client.post("/v1/completions", json={"prompt": "b"}))
        await until(lambda: len(engine.running) == 2)
        clock.now += 0.5
        await until(lambda: not service.open_requests.is_accepting)
        refused = await client.post("/v1/completions", json={"prompt": "c"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        assert not engine.stopped
        engine.gate.set()
        assert [(await task).status_code for task in (going, late)] == [200, 200]
    assert await process.end() is None
    assert engine.stopped


async def test_requests_are_cut_off_at_the_drain_timeout(engine: FakeEngine, service: Service, clock: Clock) -> None:
    process = Process(service, drain_s=0.3)
    async with process.client() as client:
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            process.signals.first = signal.SIGTERM
            await until(lambda: service.open_requests.is_draining)
            for _ in range(100):
                assert "error" not in await anext(lines)
            clock.now += 0.5
            rest = [line async for line in lines]
        assert '"code":"engine_unavailable"' in rest[-2]
    assert await process.end() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_idle_server_ends_at_once_on_ctrl_c(
    engine: FakeEngine, service: Service, clock: Clock, number: int
) -> None:
    """After SIGTERM it accepts requests for the lag, until load balancers notice."""
    process = Process(service, lag_s=0.5)
    await checks(engine)
    process.signals.first = number
    if number == signal.SIGTERM:
        await until(lambda: service.open_requests.is_draining)
        clock.now += 0.45
        await checks(engine)
        assert service.open_requests.is_accepting
        assert not engine.stopped
        clock.now += 0.1
    await until(lambda: engine.stopped)
    assert await process.end() is None


async def test_a_stuck_step_ends_the_server(engine: FakeEngine, service: Service) -> None:
    process = Process(service, step_s=0.3)
    last = await process.last_event(lambda: setattr(engine, "step", 7))
    assert '"code":"engine_unavailable"' in last
    failure = await process.end()
    assert isinstance(failure, EngineDeadError)
    assert str(failure) == "a step has taken more than 0.3 s"


async def test_a_lost_host_ends_the_server_without_a_failing_step(engine: FakeEngine, service: Service) -> None:
    process = Process(service)
    last = await process.last_event(
        lambda: setattr(engine, "lost", EngineDeadError("a host of the group has been lost"))
    )
    assert '"code":"engine_unavailable"' in last
    assert await process.end() is engine.lost


async def test_a_signal_while_loading_ends_the_server(engine: FakeEngine, service: Service) -> None:
    engine.ready.clear()
    process = Process(service)
    await served(process)
    process.signals.first = signal.SIGTERM
    assert await process.end() is None
    assert not engine.stopped


async def test_a_signal_prints_what_is_drained(
    engine: FakeEngine, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    process = Process(service)
    async with process.client() as client:
        engine.gate.clear()
        going = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a"}))
        await until(lambda: engine.running)
        process.signals.first = signal.SIGINT
        await until(lambda: service.open_requests.is_draining)
        engine.gate.set()
        assert (await going).status_code == 200
    assert await process.end() is None
    assert (
        "shutting down: draining 1 open request for at most 60 s; a second Ctrl-C or SIGTERM ends them immediately\n"
        in capsys.readouterr().err
    )


async def test_a_signal_drains_nothing_when_idle(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    process = Process(service)
    async with process.client() as client:
        assert (await client.get("/health/ready")).status_code == 200
    process.signals.first = signal.SIGINT
    assert await process.end() is None
    assert "shutting down: no request is open\n" in capsys.readouterr().err


def test_a_step_that_takes_too_long() -> None:
    watchdog, checks = Watchdog(3.0), [10.0 + 0.5 * count for count in range(7)]
    assert [watchdog.is_stuck(1, now) for now in checks] == [False] * 6 + [True]


def test_steps_that_come_and_go_are_not_stuck() -> None:
    watchdog = Watchdog(1.0)
    assert not any(watchdog.is_stuck(step, float(step)) for step in range(100))
    assert not any(watchdog.is_stuck(None, float(now)) for now in range(100, 200))


def test_the_time_between_two_steps_does_not_count() -> None:
    watchdog = Watchdog(3.0)
    steps = [1, 1, 1, None, 2, 2, 2]
    assert not any(watchdog.is_stuck(step, float(now)) for now, step in enumerate(steps))


def test_a_frozen_process_is_not_a_stuck_step() -> None:
    """An hour passes between two checks; the step continues for another two seconds."""
    watchdog = Watchdog(5.0)
    looks = [0.0, 0.1, 3600.0, 3600.1, 3602.0, 3603.0]
    assert not any(watchdog.is_stuck(1, now) for now in looks)
    assert watchdog.is_stuck(1, 3604.0) or watchdog.is_stuck(1, 3605.0)
