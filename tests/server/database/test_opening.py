"""Opening a database: who may read SQLite's files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from roost.server.database.address import StoreAddress
from roost.server.database.opening import open_database
from roost.server.database.schema import Tables, Upgrade

TABLES = Tables("notes", (Upgrade(("CREATE TABLE roost_notes (text TEXT NOT NULL)",), oldest=1),))


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_a_new_file_is_its_owners_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = open_database(StoreAddress("sqlite", str(tmp_path / "store.db")), TABLES)
    assert modes(tmp_path) == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert not caplog.records
    database.close()


def test_a_file_that_others_may_read_is_left_alone_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    path.touch(0o644)
    for _ in range(2):  # as features do
        open_database(StoreAddress("sqlite", str(path)), TABLES).close()
    assert modes(tmp_path) == {"store.db": 0o644}
    (record,) = caplog.records
    assert f"other users of the machine may use {path} (mode 644): chmod 600 it" in record.message
