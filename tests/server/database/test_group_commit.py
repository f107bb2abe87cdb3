"""Budgets of shared transactions, and tenants that fail apart from others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest
from databases import opened
from held_time import held_time
from roost.server.database.database import Database, Transaction
from roost.server.database.errors import StoreUnavailableError, WriteTooLargeError
from roost.server.database.group_commit import (
    MAX_COMMIT,
    MAX_SHARE,
    MAX_WRITE,
    GroupCommit,
    Work,
    WriteLoad,
    run_each,
)

MIB = 2**20


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address)
    yield database
    database.close()


@dataclass(frozen=True)
class Sized:
    """A write of a tenant that stores nothing."""

    owner: str
    load: WriteLoad

    def __call__(self, _: Transaction) -> None:
        pass


class Noted:
    """Commits whose transactions are noted.

    Attributes:
      transactions: Writes of each transaction.
    """

    def __init__(self, database: Database) -> None:
        self.transactions: list[list[Sized]] = []
        self.commits = GroupCommit(database, 0.0, self._run_all)

    def _run_all(self, transaction: Transaction, works: Sequence[Work[Any]]) -> list[Any]:
        self.transactions.append([work for work in works if isinstance(work, Sized)])
        return run_each(transaction, works)

    async def write(self, *loads: tuple[str, WriteLoad]) -> None:
        """Writes at the same time."""
        works = [Sized(owner, load) for owner, load in loads]
        await asyncio.gather(*(self.commits.write(work, 120.0, work.load, owner=work.owner) for work in works))

    @property
    def owners(self) -> list[str]:
        """Tenants of the writes of each transaction."""
        return ["".join(work.owner for work in works) for works in self.transactions]


def total(works: Sequence[Sized]) -> WriteLoad:
    return WriteLoad(sum(work.load.num_rows for work in works), sum(work.load.num_bytes for work in works))


async def test_a_transaction_has_a_budget_and_each_tenant_a_share(database: Database) -> None:
    noted = Noted(database)
    long = [(owner, WriteLoad(1, MIB // 4)) for owner in "abcdef" for _ in range(6)]
    many = [(owner, WriteLoad(100, 10)) for owner in "abcdef" for _ in range(6)]
    await noted.write(*long, *many)
    assert sum(map(len, noted.transactions)) == len(long) + len(many)
    for works in noted.transactions:
        assert total(works).fits(MAX_COMMIT)
        for owner in "abcdef":
            assert total([work for work in works if work.owner == owner]).fits(MAX_SHARE)
    assert len(noted.transactions[0]) > 6
    assert len(noted.transactions) < 10, "budgets are used"


async def test_small_writes_go_before_a_second_large_one(database: Database) -> None:
    """However many tenants have large ones."""
    noted, large = Noted(database), WriteLoad(20, 20 * MIB)
    await noted.write(*[(owner, large) for owner in "aabb"], *[("c", WriteLoad(1, 100))] * 3, ("d", large))
    assert noted.owners == ["a", "ccc", "b", "d", "a", "b"]


async def test_large_writes_go_between_small_ones(database: Database) -> None:
    noted = Noted(database)
    small = [("a", WriteLoad(200))] * 5
    await noted.write(*small, *[("b", WriteLoad(1000))] * 3)
    assert noted.owners == ["a", "b", "a", "b", "a", "b", "a", "a"]


async def test_a_write_beyond_the_maximum_is_refused(database: Database) -> None:
    noted = Noted(database)
    for load in (WriteLoad(MAX_WRITE.num_rows + 1), WriteLoad(1, MAX_WRITE.num_bytes + 1)):
        with pytest.raises(WriteTooLargeError, match=f"{load.num_rows:,} rows and {load.num_bytes:,} bytes"):
            await noted.write(("a", load))
    assert noted.transactions == []
    await noted.write(("a", MAX_WRITE))


async def test_after_a_timeout_tenants_fail_apart(database: Database) -> None:
    """One whose write never ends does not take the others' time."""
    begun, may_end, order = Event(), Event(), list[str]()

    def hang(_: Transaction) -> None:
        begun.set()
        may_end.wait(120)

    def store(owner: str) -> Work[None]:
        def run(transaction: Transaction) -> None:
            transaction.rows("SELECT 1")
            order.append(owner)

        return run

    def write(work: Work[None], owner: str) -> "asyncio.Task[None]":
        return asyncio.create_task(commits.write(work, 10.0, owner=owner))

    commits = GroupCommit(database, 0.0)
    with held_time() as time:
        hanging = write(hang, "a")
        others = [write(store(owner), owner) for owner in "bbc"]
        await time.until(begun.is_set)
        begun.clear()
        await time.skip(5.0)  # half of the time that they have
        may_end.set()
        await time.until(lambda: not database.is_stuck)
        may_end.clear()
        await time.skip(0.25)
        await time.until(lambda: all(each.done() for each in others))
        assert [each.exception() for each in others] == [None] * 3
        assert sorted(order) == ["b", "b", "c"]
        await time.until(begun.is_set)
        assert not hanging.done()
        await time.skip(5.0)
        with pytest.raises(StoreUnavailableError):
            await hanging
        may_end.set()
