"""Calls of transactions, on both databases: which of them wait for which, and what a caller leaves behind."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from threading import Event

import pytest
from databases import opened
from fake_server import until
from roost.server.database.database import Database, Lane, Transaction
from roost.server.database.errors import StoreClosedError, StoreUnavailableError
from roost.server.database.group_commit import GroupCommit
from roost.server.tenants import tenant

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT 1 - i FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address)
    yield database
    database.close()


def store(transaction: Transaction) -> None:
    transaction.execute("INSERT INTO test_clock VALUES (1)")


def read(transaction: Transaction) -> str:
    transaction.rows("SELECT 1")
    return "read"


def num_stored(database: Database) -> int:
    ((count,),) = database.run_now(lambda each: each.rows("SELECT count(*) FROM test_clock WHERE now = 1"))
    return int(count)


def started(
    database: Database, work: Callable[[Transaction], object], lane: Lane = Lane.READS, owner: str = ""
) -> "asyncio.Task[object]":
    async def run() -> object:
        tenant.set(owner)
        return await database.run(work, lane=lane, timeout_s=120.0)

    return asyncio.create_task(run())


@asynccontextmanager
async def occupied(database: Database, lane: Lane, count: int, owner: str = "") -> AsyncIterator[None]:
    """Keeps a tenant's transactions open until the `with` block ends."""
    end, num_open = Event(), 0

    def wait(_: Transaction) -> None:
        nonlocal num_open
        num_open += 1
        assert end.wait(120)

    tasks = [started(database, wait, lane, owner) for _ in range(count)]
    await until(lambda: num_open)
    try:
        yield
    finally:
        end.set()
        await asyncio.gather(*tasks, return_exceptions=True)


def endless(address: str, has_begun: Event) -> Callable[[Transaction], object]:
    """Returns a transaction that only an interrupt ends."""

    def work(transaction: Transaction) -> object:
        if address.startswith("postgresql"):
            transaction.execute("SET LOCAL statement_timeout = 0")
        has_begun.set()
        return transaction.rows(ENDLESS)

    return work


async def test_a_statement_whose_caller_was_cancelled_is_interrupted(
    address: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no fault of the database: other connections stay, and nothing is logged."""
    caplog.set_level(logging.INFO)
    await database.run(read)
    (idle,) = database._pool._idle[Lane.READS]
    has_begun = Event()
    async with occupied(database, Lane.READS, 1, "other"):
        task = started(database, endless(address, has_begun))
        await until(has_begun.is_set)
        task.cancel()
        await until(lambda: len(database._running) == 1)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert list(database._pool._idle[Lane.READS]) == [idle]
    assert await database.run(read) == "read"
    assert not caplog.records


async def test_a_statement_that_takes_too_long_is_interrupted(address: str, database: Database) -> None:
    with pytest.raises(StoreUnavailableError, match=r"has not responded within 0\.3 s"):
        await database.run(endless(address, Event()), timeout_s=0.3)
    await until(lambda: not database.is_stuck)
    assert await database.run(read) == "read"


async def test_a_transaction_whose_caller_has_left_is_not_committed(database: Database) -> None:
    """Also if the caller leaves between two statements."""
    has_begun, goes_on = Event(), Event()

    def work(transaction: Transaction) -> None:
        store(transaction)
        has_begun.set()
        assert goes_on.wait(120)

    task = asyncio.create_task(database.run(work, lane=Lane.COMMITS))
    await until(has_begun.is_set)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    goes_on.set()
    await until(lambda: not database.is_stuck)
    assert num_stored(database) == 0


async def test_a_write_whose_caller_has_left_never_begins(database: Database) -> None:
    """Other writes of its transaction do, which waits for a thread."""
    commits = GroupCommit(database)
    async with occupied(database, Lane.COMMITS, 1):
        left, stays = (asyncio.create_task(commits.write(store, 120.0)) for _ in range(2))
        await until(lambda: not commits._waiting)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
    await stays
    assert num_stored(database) == 1


async def test_tenants_take_turns(database: Database) -> None:
    async with occupied(database, Lane.READS, 20, "greedy"), asyncio.timeout(60):
        assert await started(database, read, owner="modest") == "read"


async def test_tenants_take_turns_in_group_commits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.server.database.group_commit._MAX_WRITES", 2)
    commits, order = GroupCommit(database, 0.0), list[str]()

    async def write(owner: str) -> None:
        tenant.set(owner)
        await commits.write(lambda _: order.append(owner), 120.0)

    async with asyncio.TaskGroup() as group:
        for owner in "aaaaabb":
            group.create_task(write(owner))
    assert order == list("ababaaa")


async def test_leases_wait_for_nobody_else(address: str, database: Database) -> None:
    """But for a commit to a file of SQLite, which has one writer at a time."""
    leases = GroupCommit(database, lane=Lane.LEASES)
    async with occupied(database, Lane.READS, 20, "a"), occupied(database, Lane.READS, 20, "b"), asyncio.timeout(60):
        if address.startswith("postgresql"):
            async with occupied(database, Lane.COMMITS, 1):
                await leases.write(store, 120.0)
        else:
            await leases.write(store, 120.0)
    assert num_stored(database) == 1


async def test_a_closed_database_is_unavailable(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Also to calls that wait. Those that run go on."""
    commits = GroupCommit(database)
    async with occupied(database, Lane.COMMITS, 1):
        waiting = started(database, read, Lane.COMMITS)
        writing = asyncio.create_task(commits.write(store, 120.0))
        await until(lambda: not commits._waiting)
        database.close()
        for call in (waiting, writing, database.run(read), commits.write(store, 120.0)):
            with pytest.raises(StoreClosedError, match="was closed"):
                async with asyncio.timeout(60):
                    await call
    assert not caplog.records


async def test_a_lease_does_not_end_the_fault_of_commits(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Where the disk is full, leases are renewed and nothing is stored; the log says so once."""
    caplog.set_level(logging.INFO)

    def fail(transaction: Transaction) -> None:
        transaction.execute("SELECT * FROM lost")

    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            await database.run(fail, lane=Lane.COMMITS)
        await database.run(store, lane=Lane.LEASES)
    await database.run(store, lane=Lane.COMMITS)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
