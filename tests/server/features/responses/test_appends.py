"""Writes that share a transaction, and databases that go away, are slow or full."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from databases import PostgresqlServer, opened, postgresql_server
from fake_server import until
from held_time import held_time
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Transaction, dialect_of
from roost.server.database.errors import FencedError, StoreFullError, StoreUnavailableError
from roost.server.database.group_commit import INTERVAL_S, GroupCommit
from roost.server.features.responses import event_log, response_table
from roost.server.features.responses.conversations import RUNNING
from roost.server.features.responses.event_log import LogEntry
from roost.server.features.responses.response_table import Append, Job, ResponseRecord, run_all
from roost.server.storage.objects import Bounds
from roost.server.storage.work import Lease


def record(number: int) -> ResponseRecord:
    return ResponseRecord("", f"r{number}", b"{}", b"[]", b"[]")


def commits_of(database: Database) -> GroupCommit:
    return GroupCommit(database, INTERVAL_S, partial(run_all, bounds=Bounds()))


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address)
    yield database
    database.close()


def num_stored(database: Database) -> int:
    ((count,),) = database.run_now(lambda each: each.rows("SELECT count(*) FROM roost_responses"))
    return int(count)


async def test_writes_of_a_moment_share_a_transaction(database: Database) -> None:
    commits, began = commits_of(database), time.monotonic()
    transactions = set()

    def work(number: int, transaction: Transaction) -> int:
        transactions.add(id(transaction))
        response_table.put(transaction, record(number))
        return number

    first = asyncio.create_task(commits.write(lambda each: work(0, each), 60.0))
    await asyncio.sleep(0.02)
    later = [commits.write(lambda each, n=n: work(n, each), 60.0) for n in range(1, 50)]
    assert await asyncio.gather(first, *later) == list(range(50))
    assert len(transactions) <= 3
    assert time.monotonic() - began >= 0.05
    assert num_stored(database) == 50


async def test_a_refused_write_leaves_the_others_alone(database: Database) -> None:
    commits = commits_of(database)

    def refuse(_: Transaction) -> None:
        raise FencedError("not mine")

    def fail(transaction: Transaction) -> None:
        transaction.execute("SELECT nothing FROM nowhere_at_all WHERE 1 = 1 / (SELECT 0)")
        raise AssertionError

    results = await asyncio.gather(
        commits.write(lambda each: response_table.put(each, record(1)), 5.0),
        commits.write(refuse, 5.0),
        commits.write(lambda each: response_table.put(each, record(2)), 5.0),
        return_exceptions=True,
    )
    assert [type(each) for each in results] == [bytes, FencedError, bytes]
    assert num_stored(database) == 2


async def test_appends_of_a_moment_take_two_statements(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a former owner is refused alone; one that is repeated changes nothing."""
    commits = commits_of(database)
    records = [replace(record(number), is_background=True, is_running=True) for number in range(5)]
    for each in records:
        await commits.write(partial(response_table.insert, job=Job(each, "model"), owner="me"), 5.0)
    leases = [Lease("", each.id, 1, 1) for each in records]
    await commits.write(lambda each: RUNNING.seize(each, "other", "", "r3"), 5.0)
    statements: list[str] = []
    execute = Transaction.execute

    def noted(self: Transaction, sql: str, *values: Any) -> Any:
        statements.append(sql)
        return execute(self, sql, *values)

    monkeypatch.setattr(Transaction, "execute", noted)
    entries = [LogEntry(0, 0, 1, 0, 10**number, b"delta", b"event") for number in range(5)]
    for _ in range(2):
        statements.clear()
        appends = [Append(lease, entry, entry.num_bytes) for lease, entry in zip(leases, entries, strict=True)]
        results = await asyncio.gather(*(commits.write(each, 5.0) for each in appends), return_exceptions=True)
        assert [type(each) for each in results] == [type(None)] * 3 + [FencedError, type(None)]
        assert len(statements) == 2
    for number, entry in enumerate(entries):
        logged = database.run_now(lambda each, n=number: event_log.new_entries(each, ("", f"r{n}"), 0)[0])
        assert logged == ([] if number == 3 else [entry])


async def test_a_bug_in_a_write_leaves_the_others_alone(database: Database) -> None:
    commits = commits_of(database)

    def break_down(_: Transaction) -> None:
        raise KeyError("bug")

    writes = [commits.write(lambda each: response_table.put(each, record(1)), 5.0), commits.write(break_down, 5.0)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(each) for each in results] == [bytes, KeyError]
    assert num_stored(database) == 1


async def test_a_full_database_that_becomes_slow_says_that_it_is_full(tmp_path: Path) -> None:
    """The last attempt has what is left of the write's time, which is too little on a busy machine."""
    database = opened(f"sqlite://{tmp_path / 'store.db'}")
    attempts: list[None] = []
    may_end = threading.Event()

    def limited(transaction: Transaction) -> None:
        attempts.append(None)
        if len(attempts) > 1:
            may_end.wait()
        transaction.execute("PRAGMA max_page_count = 40")
        response_table.put(transaction, ResponseRecord("", "big", bytes(2**20), b"", b""))

    with pytest.raises(StoreFullError, match="full"):
        await commits_of(database).write(limited, 3.0, waits_for_room=True)
    may_end.set()
    assert len(attempts) == 2
    database.close()


async def test_a_slow_database_is_given_up(database: Database) -> None:
    """The transaction goes on; what waits for it does not."""
    begun, may_end = threading.Event(), threading.Event()

    def work(_: Transaction) -> None:
        begun.set()
        may_end.wait()

    with held_time() as time:
        running = asyncio.create_task(database.run(work, timeout_s=1.0))
        await time.until(begun.is_set)
        await time.skip(1.0)
        with pytest.raises(StoreUnavailableError, match=r"not responded within 1 s"):
            await running
    assert database.is_stuck
    may_end.set()
    await until(lambda: not database.is_stuck)


async def test_writes_wait_for_a_database_that_comes_back() -> None:
    with postgresql_server() as server:
        database = opened(server.url)
        commits = commits_of(database)
        await commits.write(lambda each: response_table.put(each, record(0)), 60.0)
        server.stop()
        kept = asyncio.create_task(commits.write(lambda each: response_table.put(each, record(1)), 120.0))
        with pytest.raises(StoreUnavailableError, match="cannot be used"):
            await commits.write(lambda each: response_table.put(each, record(2)), 2.0)
        with pytest.raises(StoreUnavailableError, match="cannot be used") as caught:  # at once, not at its time limit
            await database.run(lambda each: response_table.RESPONSES.find(each, "", "r0"), timeout_s=120.0)
        assert "sesame" not in str(caught.value)
        assert not kept.done()
        await asyncio.to_thread(server.start)
        await kept
        assert await database.run(lambda each: response_table.RESPONSES.find(each, "", "r1")) == record(1)
        assert await database.run(lambda each: response_table.RESPONSES.find(each, "", "r2")) is None
        database.close()


def test_a_wrong_password_is_not_shown(postgresql: PostgresqlServer) -> None:
    address = StoreAddress.parse(postgresql.url.replace("sesame", "a-wrong-one"))
    with pytest.raises(StoreUnavailableError) as caught:
        Database(dialect_of(address)).run_now(lambda each: each.rows("SELECT 1"))
    assert "a-wrong-one" not in str(caught.value)
    assert caught.value.__cause__ is None
