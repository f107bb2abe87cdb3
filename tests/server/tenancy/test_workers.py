"""Worker threads that tenants share."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest
from fake_server import until
from roost.server.tenants import Workers, WorkersClosedError, tenant


class Job:
    """Work that ends when `end` is set."""

    def __init__(self, name: str, started: list[str]) -> None:
        self.end = threading.Event()
        self._name = name
        self._started = started

    def __call__(self) -> str:
        self._started.append(self._name)
        assert self.end.wait(120)
        return self._name


def run(workers: Workers, owner: str, work: Callable[[], str]) -> "asyncio.Task[str]":
    async def as_owner() -> str:
        tenant.set(owner)
        return await workers.run(work)

    return asyncio.create_task(as_owner())


async def done(*tasks: Awaitable[str]) -> list[str]:
    async with asyncio.timeout(60):
        return list(await asyncio.gather(*tasks))


async def test_work_runs_on_a_thread_as_its_tenant() -> None:
    tenant.set("alice")
    thread, owner = await Workers().run(lambda: (threading.current_thread(), tenant.get()))
    assert thread is not threading.main_thread()
    assert owner == "alice"


async def test_exception_of_work_is_raised() -> None:
    def fail() -> None:
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        await Workers().run(fail)


async def test_tenant_does_not_occupy_all_threads() -> None:
    started: list[str] = []
    workers = Workers(tenants=2, num_threads=2)
    greedy = [Job(f"g{number}", started) for number in range(3)]
    tasks = [run(workers, "greedy", job) for job in greedy]
    await until(lambda: started == ["g0"])
    modest = Job("m", started)
    tasks.append(run(workers, "modest", modest))
    await until(lambda: started == ["g0", "m"])
    for job in (*greedy, modest):
        job.end.set()
    assert await done(*tasks) == ["g0", "g1", "g2", "m"]


async def test_tenants_take_turns() -> None:
    """One tenant's queue does not delay the work of others."""
    started: list[str] = []
    workers = Workers(num_threads=1)
    jobs = [Job(name, started) for name in ("a0", "a1", "a2", "b0", "c0")]
    tasks = [run(workers, name[0], job) for name, job in zip(("a0", "a1", "a2", "b0", "c0"), jobs, strict=True)]
    for job in jobs:
        job.end.set()
    await done(*tasks)
    assert started == ["a0", "b0", "c0", "a1", "a2"] or started == ["a0", "a1", "b0", "c0", "a2"]


async def test_cancelled_work_never_starts() -> None:
    started: list[str] = []
    workers = Workers(num_threads=1)
    first, second, third = (Job(name, started) for name in ("first", "second", "third"))
    tasks = [run(workers, "", job) for job in (first, second, third)]
    await until(lambda: started == ["first"])
    tasks[1].cancel()
    first.end.set()
    third.end.set()
    assert await done(tasks[0], tasks[2]) == ["first", "third"]
    assert started == ["first", "third"]


async def test_thread_is_free_after_cancelled_work_ends() -> None:
    started: list[str] = []
    workers = Workers(num_threads=1)
    first, second = Job("first", started), Job("second", started)
    task = run(workers, "", first)
    await until(lambda: started == ["first"])
    task.cancel()
    first.end.set()
    second.end.set()
    assert await done(run(workers, "", second)) == ["second"]


async def test_closed_workers_start_nothing() -> None:
    started: list[str] = []
    workers = Workers(num_threads=1)
    first, second = Job("first", started), Job("second", started)
    running, waiting = run(workers, "", first), run(workers, "", second)
    await until(lambda: started == ["first"])
    workers.close()
    for task in (waiting, run(workers, "", second)):
        with pytest.raises(WorkersClosedError):
            await task
    first.end.set()
    assert await done(running) == ["first"]
    assert started == ["first"]


def test_work_may_outlast_its_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    started: list[str] = []
    workers, job = Workers(num_threads=1), Job("late", started)

    async def begin() -> None:
        task = run(workers, "", job)
        await until(lambda: started == ["late"])
        task.cancel()

    asyncio.run(begin())
    job.end.set()
    workers._threads.shutdown()
    assert not caplog.records
