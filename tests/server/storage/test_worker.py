"""The loop of a replica that claims and runs work, with a kind of work whose units a test ends, on both databases."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from fake_server import until
from roost.server.database.dialects import LEASE_S
from roost.server.database.errors import StoreOutdatedError, StoreUnavailableError
from roost.server.storage import claims, work
from roost.server.storage.claims import Claimant, Places
from roost.server.storage.work import Claim, Lease
from roost.server.storage.worker import Leases, Worker, WorkKind
from work_tables import MODEL, TABLE, Tables

ALONE = f"SELECT number FROM {TABLE} WHERE lone_fence = fence AND owner IS NOT NULL"


@dataclass(frozen=True)
class Unit:
    """A claimed unit."""

    claim: Claim


class Kind(WorkKind[Unit]):
    """Work whose units run until a test ends them.

    Attributes:
      ends: How each running unit ends, by its number: it is finished, or raises an error.
      begun: Numbers of the units whose runs have begun.
      finished: Numbers of the units whose results were stored.
      rest: Whether a unit leaves the storing of its result for the rest of its work; set ends the rest.
      preferred: Whether each claim preferred a suspect.
    """

    others_s: float | None = None
    is_draining = False
    rest: asyncio.Event | None = None
    lone_s: float | None = None

    def __init__(self, tables: Tables, leases: Leases, size: int) -> None:
        self.tables, self.leases, self.size = tables, leases, size
        self.ends: dict[int, asyncio.Future[None]] = {}
        self.begun, self.finished = list[int](), list[int]()
        self.preferred = list[bool]()
        self.num_barred = 0

    @property
    def gives_way(self) -> bool:
        return self.is_draining

    def places(self, running: Collection[Unit]) -> Places:
        return Places(self.size - len(running), self.size)

    async def claim(self, places: Places) -> Sequence[Unit]:
        self.preferred.append(places.prefers_suspect)
        claimant = Claimant(self.leases.owner, MODEL)
        found = await self.leases.write(lambda each: claims.claim(each, self.tables.work, claimant, places))
        return [Unit(each) for each in found]

    async def clean(self) -> None: ...

    def bar_others(self) -> AbstractAsyncContextManager[None]:
        @asynccontextmanager
        async def barred() -> AsyncGenerator[None]:
            self.num_barred += 1
            yield
            self.num_barred -= 1

        return barred()

    def alone_s(self, claim: Unit) -> float | None:
        return self.lone_s

    async def run(self, claim: Unit) -> Callable[[], Awaitable[Any]] | None:
        lease = claim.claim.lease
        self.begun.append(lease.number)
        end = self.ends[lease.number] = asyncio.get_running_loop().create_future()
        try:
            await end
        finally:
            del self.ends[lease.number]
        if self.rest is not None:
            return partial(self._finish_later, lease, self.rest)
        await self._finish(lease)
        return None

    async def _finish_later(self, lease: Lease, event: asyncio.Event) -> None:
        await event.wait()
        await self._finish(lease)

    async def _finish(self, lease: Lease) -> None:
        work.check(lease, await self.leases.write(partial(self.tables.work.end, leases=[lease])))
        self.finished.append(lease.number)


class Replica:
    """A worker, whose looks a test makes."""

    def __init__(self, tables: Tables, size: int) -> None:
        self.leases = Leases(tables.database, tables.work)
        self.kind = Kind(tables, self.leases, size)
        self.has_work = asyncio.Event()
        self.worker = Worker(self.kind, self.leases, self.has_work)

    @property
    def running(self) -> list[int]:
        """Numbers of the units that run."""
        return sorted(self.kind.ends)

    async def look(self, *numbers: int) -> None:
        """Looks for work, and waits until these units run."""
        await self.worker.look()
        await until(lambda: set(numbers) <= set(self.running))

    async def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.kind.ends[number].set_result(None)
        await until(lambda: not set(numbers) & {lease.number for lease in self.worker._open})


@pytest.fixture
async def replica(tables: Tables) -> AsyncIterator[Replica]:
    replica = Replica(tables, 4)
    yield replica
    await replica.worker.stop()


def owners(tables: Tables) -> dict[int, str | None]:
    return {number: owner for number, owner, is_range in tables.read("number, owner, is_range") if not is_range}


def suspect(tables: Tables, *numbers: int) -> None:
    """Lets units have lost two owners, and be due."""
    for number in numbers:
        tables.rows(f"UPDATE {TABLE} SET num_deaths = 2, owner = NULL, lease_until = 0 WHERE number = {number}")


async def test_as_many_units_run_as_there_are_places(tables: Tables, replica: Replica) -> None:
    tables.make_range("", "r", 6)
    await replica.look(1, 2, 3, 4)
    assert owners(tables) == dict.fromkeys(range(1, 5), replica.leases.owner)
    await replica.look()
    assert replica.running == [1, 2, 3, 4]
    await replica.finish(2, 3)
    assert replica.has_work.is_set()
    await replica.look(1, 4, 5, 6)
    await replica.finish(1, 4, 5, 6)
    assert (sorted(replica.kind.finished), tables.read("number")) == ([1, 2, 3, 4, 5, 6], [])


async def test_the_rest_of_a_units_work_takes_no_place(tables: Tables, replica: Replica) -> None:
    """It keeps its lease, and the worker's end waits for it instead of giving it back."""
    tables.make_range("", "r", 5)
    rest = replica.kind.rest = asyncio.Event()
    await replica.look(1, 2, 3, 4)
    replica.kind.ends[1].set_result(None)
    await until(lambda: len(replica.worker._running) < 4)
    assert replica.has_work.is_set()
    tables.die()
    await replica.look(2, 3, 4, 5)
    assert {lease.number for lease in replica.leases.held} == {1, 2, 3, 4, 5}
    assert tables.read("lease_until") == [(tables.now + LEASE_S,)] * 5
    stopping = asyncio.create_task(replica.worker.stop())
    await until(lambda: not replica.running)
    assert owners(tables) == {1: replica.leases.owner, 2: None, 3: None, 4: None, 5: None}
    assert not stopping.done()
    rest.set()
    await stopping
    assert replica.kind.finished == [1]


async def test_units_of_a_dead_replica_are_adopted(tables: Tables, replica: Replica) -> None:
    tables.make_range("", "r", 2)
    tables.claimed(2, "dead")
    await replica.look()
    assert replica.running == []
    tables.die()
    await replica.look(1, 2)
    assert tables.read("num_deaths, fence") == [(1, 2)] * 2
    tables.pass_time(LEASE_S - 1)
    await replica.look()
    tables.pass_time(LEASE_S - 1)
    assert tables.claimed(2, "other") == [], "its leases were renewed"


async def test_a_replica_that_was_stopped_past_its_leases_writes_nothing(
    tables: Tables, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    """What ends before the replica learns of it is refused, and what runs is stopped."""
    caplog.set_level(logging.INFO)
    tables.make_range("", "r", 2)
    await replica.look(1, 2)
    tables.die()
    assert len(tables.claimed(2, "other")) == 2
    await replica.finish(1)
    assert [record.message for record in caplog.records] == [
        "r is left to other replicas: r was adopted, ended or deleted by another replica"
    ]
    await replica.look()
    await until(lambda: not replica.worker._open)
    assert (replica.kind.finished, replica.leases.num_refusals) == ([], 0)
    assert owners(tables) == {1: "other", 2: "other"}
    assert tables.read("fence, num_refusals") == [(2, 0)] * 2


async def test_a_unit_that_cannot_be_run_here_is_refused(
    tables: Tables, replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    """If the store cannot be reached, its lease ends instead."""
    tables.make_range("", "r", 2)
    await replica.look(1, 2)
    replica.kind.ends[1].set_exception(ValueError("a bug"))
    replica.kind.ends[2].set_exception(StoreUnavailableError("away"))
    await until(lambda: not replica.worker._open)
    assert owners(tables) == {1: None, 2: replica.leases.owner}
    assert tables.read("num_refusals, num_deaths") == [(1, 0), (0, 0)]
    assert replica.leases.num_refusals == 1
    assert {record.message for record in caplog.records} == {
        "r was not ended",
        "r is left to other replicas: away",
    }


async def test_a_lease_without_a_task_is_given_back(tables: Tables, replica: Replica) -> None:
    """Such as that of a claim whose commit was not reported, but not one that a request is about to hold."""
    replica.kind.size = 0
    for name in ("stray", "taken"):
        tables.begun("", name, replica.leases.owner)
    with replica.leases.taking("", "taken"):
        await replica.look()
        assert tables.read("id, owner") == [("stray", None), ("taken", replica.leases.owner)]
        assert replica.leases.num_strays == 1
    await replica.look()
    assert tables.read("owner, num_deaths") == [(None, 0)] * 2


async def test_suspects_run_alone_one_after_the_other(tables: Tables, replica: Replica) -> None:
    """One waits until the others have ended, and counts as alone from then on. Then others come first."""
    tables.make_range("", "r", 6)
    await replica.look(1, 2, 3, 4)
    await replica.finish(1, 2)
    tables.claimed(2, "dead")
    suspect(tables, 5, 6)
    tables.make_range("", "s", 3)
    await replica.look()
    await until(lambda: replica.kind.num_barred)
    await replica.look()
    assert (replica.running, tables.rows_of(ALONE)) == ([3, 4], [])
    await replica.finish(3, 4)
    await until(lambda: replica.running)
    (first,) = replica.running
    await replica.look()
    assert (replica.running, tables.rows_of(ALONE), replica.kind.num_barred) == ([first], [(first,)], 1)
    replica.worker._lone_since -= 1e6  # as if it had run for long
    await replica.finish(first)
    assert replica.kind.num_barred == 0
    await replica.look(1, 2, 3)
    assert (replica.kind.preferred[-1], replica.running) == (False, [1, 2, 3])
    replica.worker._next_lone_at = 0.0
    await replica.look()
    assert (replica.kind.preferred[-1], replica.running) == (True, [1, 2, 3])
    await replica.finish(1, 2, 3)
    await until(lambda: replica.running == [11 - first])
    assert tables.rows_of(ALONE) == [(11 - first,)]


async def test_a_suspect_waits_for_the_rest_of_the_work_of_others(tables: Tables, replica: Replica) -> None:
    tables.make_range("", "r", 2)
    rest = replica.kind.rest = asyncio.Event()
    await replica.look(1, 2)
    replica.kind.ends[1].set_result(None)
    replica.kind.ends[2].set_result(None)
    await until(lambda: not replica.worker._running)
    tables.make_range("", "s", 3)
    tables.claimed(3, "dead")
    suspect(tables, 3)
    await replica.look()
    await until(lambda: replica.kind.num_barred)
    assert (replica.running, tables.rows_of(ALONE)) == ([], [])
    rest.set()
    await until(lambda: replica.running == [3])
    assert tables.rows_of(ALONE) == [(3,)]


async def test_a_suspect_runs_beside_units_that_take_long(tables: Tables, replica: Replica) -> None:
    """Its owner's death would then not be attributed to it."""
    tables.make_range("", "r", 3)
    await replica.look(1, 2, 3)
    tables.begun("", "s", "dead")
    await replica.finish(1)
    tables.rows(f"UPDATE {TABLE} SET num_deaths = 2, owner = NULL, lease_until = 0 WHERE id = 's'")
    replica.kind.others_s = 0.0
    await replica.look(1, 2, 3)
    assert (tables.rows_of(ALONE), replica.worker._lone, replica.kind.num_barred) == ([], None, 0)


async def test_others_join_a_suspect_after_a_time(tables: Tables, replica: Replica) -> None:
    tables.make_range("", "r", 3)
    tables.claimed(1, "dead")
    suspect(tables, 1)
    replica.kind.lone_s = 0.0
    await replica.look(1)
    await until(lambda: replica.worker._lone is None)
    assert (tables.rows_of(ALONE), replica.kind.num_barred) == ([], 0)
    await replica.look(1, 2, 3)


async def test_a_suspect_that_was_lost_while_it_waited_does_not_run(tables: Tables, replica: Replica) -> None:
    tables.make_range("", "r", 2)
    await replica.look(1, 2)
    await replica.finish(1)
    tables.begun("", "s", "dead")
    tables.rows(f"UPDATE {TABLE} SET num_deaths = 2, owner = NULL, lease_until = 0 WHERE id = 's'")
    await replica.look()
    await until(lambda: replica.kind.num_barred)
    tables.run(tables.work.seize, "other", "", "s")
    await replica.finish(2)
    await until(lambda: not replica.worker._open)
    assert replica.kind.begun == [1, 2]
    assert (replica.kind.num_barred, replica.worker._lone, owners(tables)) == (0, None, {1: "other"})


async def test_a_replica_that_drains_gives_its_units_back(tables: Tables, replica: Replica) -> None:
    """That is no death."""
    tables.make_range("", "r", 3)
    await replica.look(1, 2, 3)
    replica.kind.is_draining = True
    await replica.look()
    assert (replica.running, replica.worker._open) == ([], {})
    assert tables.read("owner, num_deaths, num_refusals") == [(None, 0, 0)] * 3
    replica.kind.is_draining = False
    await replica.look(1, 2, 3)


async def test_a_replica_that_may_not_use_the_tables_stops_its_units(tables: Tables, replica: Replica) -> None:
    tables.make_range("", "r", 2)
    await replica.look(1, 2)
    tables.database.outdated = "a newer server has upgraded the tables"
    with pytest.raises(StoreOutdatedError):
        await replica.worker.look()
    await until(lambda: not replica.worker._open)
    tables.database.outdated = None


async def test_a_worker_looks_when_there_is_work_and_outlasts_errors(
    tables: Tables, replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A look neither waits for the next renewal nor for a unit's end."""
    monkeypatch.setattr("roost.server.storage.worker.RENEW_S", 1e6)
    monkeypatch.setattr(Kind, "pause_s", 1e6)
    failures: list[Exception] = [StoreUnavailableError("away"), ValueError("a bug")]
    claim = replica.kind.claim

    async def failing(places: Places) -> Sequence[Unit]:
        if failures:
            raise failures.pop()
        return await claim(places)

    monkeypatch.setattr(replica.kind, "claim", failing)
    replica.worker.start()
    while failures:
        await until(lambda: not replica.has_work.is_set())
        replica.has_work.set()
        await asyncio.sleep(0)
    tables.make_range("", "r", 5)
    replica.has_work.set()
    await until(lambda: replica.running == [1, 2, 3, 4])
    await replica.finish(1)
    await until(lambda: replica.running == [2, 3, 4, 5])
    assert [record.message for record in caplog.records] == ["work was not claimed, or old work not deleted"]
