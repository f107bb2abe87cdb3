"""Writes to a full database: which of them wait for room."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from roost.server.database.database import Database, Transaction
from roost.server.database.dialects import Sqlite
from roost.server.database.errors import StoreFullError
from roost.server.database.group_commit import GroupCommit, Work

LARGE = b"x" * 100_000


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(Sqlite(str(tmp_path / "store.db")))
    database.run_now(lambda each: each.execute("CREATE TABLE notes (text BLOB)"), writes=True)
    yield database
    database.close()


class Disk:
    """A database that is full while a test says so.

    Attributes:
      num_tries: Number of attempts to write much.
    """

    def __init__(self) -> None:
        self.max_pages = 5
        self.num_tries = 0
        self.was_tried = asyncio.Event()

    def write(self, data: bytes) -> Work[Any]:
        loop = asyncio.get_running_loop()

        def run(transaction: Transaction) -> None:
            transaction.execute(f"PRAGMA max_page_count = {self.max_pages}")
            transaction.execute("INSERT INTO notes VALUES (?)", data)

        def counted(transaction: Transaction) -> None:
            if data == LARGE:
                self.num_tries += 1
                loop.call_soon_threadsafe(self.was_tried.set)
            run(transaction)

        return counted


async def test_a_client_learns_at_once_that_there_is_no_room(database: Database) -> None:
    """Small writes of the same transaction are committed."""
    disk, commits = Disk(), GroupCommit(database, 0.0)
    large, small = await asyncio.gather(
        commits.write(disk.write(LARGE), 3600.0), commits.write(disk.write(b"x"), 3600.0), return_exceptions=True
    )
    assert isinstance(large, StoreFullError)
    assert small is None
    assert disk.num_tries == 2  # with the small one, and alone
    assert database.run_now(lambda each: each.rows("SELECT text FROM notes")) == [(b"x",)]


async def test_the_owner_of_a_running_response_waits_for_room(database: Database) -> None:
    disk, commits = Disk(), GroupCommit(database, 0.0)
    writing = asyncio.create_task(commits.write(disk.write(LARGE), 3600.0, waits_for_room=True))
    await disk.was_tried.wait()
    assert not writing.done()
    disk.max_pages = 10_000
    async with asyncio.timeout(60):
        await writing
