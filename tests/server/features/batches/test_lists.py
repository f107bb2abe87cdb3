"""Lists of files and batches, and what runs in the background: pages, bounds, and the plans of the statements."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from databases import opened
from roost.server.database.database import Database, Transaction
from roost.server.features.batches import batch_table, file_table
from roost.server.features.batches.batch_table import BATCHES, TABLES, BatchRecord, BatchStatus
from roost.server.features.batches.file_table import FILES
from roost.server.storage.objects import Page, PageSpec

TENANTS = "ab"

OF_CLAIMS = {"roost_batches_waiting", "roost_batches_expiries", "roost_files_sizes"}
INDEXES = {
    name
    for text in TABLES.upgrades[0].statements
    for name in re.findall(r"CREATE INDEX (roost_(?:files|batches)_\w+)", text)
}


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = opened(address, clocked=True)
    database.run_now(fill, writes=True)
    yield database
    database.close()


def fill(transaction: Transaction) -> None:
    """Stores seven files and batches of each tenant. Some are of the same moment."""
    for number in range(7):
        transaction.execute("UPDATE test_clock SET now = ?", 1000.0 + number // 3)
        for tenant in TENANTS:
            store(transaction, tenant, number)


def store(transaction: Transaction, tenant: str, number: int) -> None:
    file_id = f"f{number}"
    file_table.begin(transaction, tenant, file_id, "batch_output" if number % 2 else "batch", "x")
    if number < 6:
        file_table.finish(transaction, tenant, file_id)
    files = file_id, f"out{number}", f"err{number}"
    times = 0.0, 0.0, None
    batch = BatchRecord(tenant, f"b{number}", BatchStatus.IN_PROGRESS, "m", "/v1/x", *files, "24h", b"{}", *times, 1)
    batch_table.insert(transaction, batch, 1e6)
    if number % 3 == 0:
        batch_table.cancel(transaction, tenant, f"b{number}")


type Read = Callable[..., Page[Any] | None]


@pytest.mark.parametrize("limit", [1, 2, 4, 100])
@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize(
    ("read", "options", "ids"),
    [
        (FILES.page_of, {}, ["f0", "f1", "f2", "f3", "f4", "f5"]),
        (FILES.page_of, {"purpose": "batch"}, ["f0", "f2", "f4"]),
        (FILES.page_of, {"purpose": "batch_output"}, ["f1", "f3", "f5"]),
        (BATCHES.page_of, {}, ["b0", "b1", "b2", "b3", "b4", "b5"]),
    ],
)
def test_pages_follow_one_another(
    database: Database, read: Read, options: dict[str, Any], ids: list[str], newest_first: bool, limit: int
) -> None:
    """Each entry is on one page, also where entries have the same time. An unfinished file is on none."""
    after, found, has_more = None, list[str](), True
    while has_more:
        spec = PageSpec(limit, after, newest_first)
        page = database.run_now(lambda each, spec=spec: read(each, "a", spec=spec, **options))
        assert page is not None
        found += [record.id for record in page.items]
        has_more, after = page.has_more, found[-1]
        assert len(page.items) == limit or not has_more
    assert found == (ids[::-1] if newest_first else ids)


def test_a_page_after_an_entry_of_another_list(database: Database) -> None:
    database.run_now(lambda each: file_table.begin(each, "b", "own", "batch", "x"), writes=True)
    for after, options in (("own", {}), ("f1", {"purpose": "batch"}), ("f6", {})):
        spec = PageSpec(1, after)
        assert database.run_now(lambda each, s=spec, o=options: FILES.page_of(each, "a", s, **o)) is None
    assert database.run_now(lambda each: BATCHES.page_of(each, "c", PageSpec(1, "b1"))) is None


def test_ended_batches_are_deleted_some_at_a_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_table, "_MAX_EXPIRED", 2)
    database.run_now(lambda each: each.execute("UPDATE test_clock SET now = 2000"), writes=True)
    counts = []
    for _ in range(3):
        database.run_now(lambda each: batch_table.expire(each, 500.0), writes=True)
        counts.append(sum(database.run_now(batch_table.totals).batches.values()))
    assert counts == [10, 8, 8]


def test_metrics_are_counted_up_to_a_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_table, "_MAX_COUNTED", 3)
    totals = database.run_now(batch_table.totals)
    assert (totals.batches, totals.waiting_lines) == ({"in_progress": 3, "cancelled": 3}, 3)


class Explained(Transaction):
    """A transaction that notes the plans of its statements."""

    def __init__(self, transaction: Transaction, address: str) -> None:
        super().__init__(transaction.dialect)
        assert transaction._connection is not None
        self.use(transaction._connection)
        self.plans: list[str] = []
        self._explain = "EXPLAIN" if address.startswith("postgresql") else "EXPLAIN QUERY PLAN"

    def execute(self, sql: str, *values: Any) -> Any:
        plan = super().execute(f"{self._explain} {sql}", *values).fetchall()
        self.plans.append("\n".join([sql, *(str(row[-1]) for row in plan)]))
        return super().execute(sql, *values)


def read_all(transaction: Transaction) -> None:
    """Runs each statement that looks for rows by other columns than their keys."""
    for newest_first in (False, True):
        for after in (None, "f1"):
            FILES.page_of(transaction, "a", PageSpec(2, after, newest_first))
            FILES.page_of(transaction, "a", PageSpec(2, after, newest_first), purpose="batch_output")
        for after in (None, "b1"):
            BATCHES.page_of(transaction, "a", PageSpec(2, after, newest_first))
    batch_table.hide_file(transaction, "a", "f1")
    batch_table.totals(transaction)
    file_table.expire(transaction, 1.0)
    batch_table.expire(transaction, 1.0)
    FILES.remove_hidden(transaction)
    batch_table.cancel(transaction, "a", "b1")


def test_no_statement_reads_a_whole_table(address: str, database: Database) -> None:
    """Nor sorts rows. The tests' tables are small, so that PostgreSQL has to be asked not to read them as a whole."""

    def explained(transaction: Transaction) -> list[str]:
        if address.startswith("postgresql"):
            for method in ("seqscan", "sort", "bitmapscan"):
                transaction.execute(f"SET LOCAL enable_{method} = off")
        explaining = Explained(transaction, address)
        read_all(explaining)
        return explaining.plans

    plans = database.run_now(explained, writes=True)
    assert len(plans) > 25
    signs = ("SCAN roost_", "USE TEMP B-TREE", "Seq Scan on roost_", "Sort", "Filter: (created")
    assert [plan for plan in plans if any(sign in plan.partition("\n")[2] for sign in signs)] == []
    unused = {name for name in INDEXES - OF_CLAIMS if not any(name in plan for plan in plans)}
    by_choice = {"roost_batches_statuses"} if address.startswith("postgresql") else set()  # it may take a partial one
    assert unused <= by_choice
