"""Claims of lines by several replicas, on both databases: each line ends once, whoever loses it."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from batch_rows import MODEL, NotHeld, at, claimed, end, make_batch, runner
from databases import opened
from roost.server.database.database import Database
from roost.server.database.dialects import LEASE_S
from roost.server.features.batches import batch_table, file_table
from roost.server.features.batches.batch_lines import LineResult, TokenUsage
from roost.server.features.batches.batch_table import BatchStatus, LineClaim, LineTable
from roost.server.storage import objects
from roost.server.storage.objects import PageSpec

LINES = LineTable(10**9)


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = opened(address, clocked=True)
    yield database
    database.close()


@pytest.fixture
def run(database: Database) -> Callable[..., Any]:
    return runner(database)


def output(database: Database, name: str, tenant: str = "") -> list[tuple[int, bytes]]:
    return database.run_now(lambda each: file_table.lines(each, tenant, name, 0))


def test_a_batch_ends_with_its_last_line(database: Database, run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=3)
    claims = claimed(run, "r1", 2) + claimed(run, "r2", 5)
    assert [claim.data for claim in claims] == [b"0\n", b"1\n", b"2\n"]
    for claim in claims:
        assert run(batch_table.BATCHES.find, tenant="", id="b").status == BatchStatus.IN_PROGRESS
        assert run(file_table.FILES.find, tenant="", id="out-b") is None
        end(run, claim, fails=claim.data == b"1\n")
    batch = run(batch_table.BATCHES.find, tenant="", id="b")
    assert (batch.status, batch.num_completed, batch.num_failed) == (BatchStatus.COMPLETED, 2, 1)
    assert output(database, "out-b") == [(1, b"done 0\n"), (3, b"done 2\n")]
    assert output(database, "err-b") == [(2, b"done 1\n")]
    assert run(file_table.FILES.find, tenant="", id="out-b").num_bytes == 14
    assert claimed(run, "r1", 5) == []


def test_lines_of_a_dead_replica_are_claimed_once_more(database: Database, run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=2)
    lost = claimed(run, "r1", 2)
    at(database, 1000.0 + LEASE_S - 1)
    assert claimed(run, "r2", 2) == []
    at(database, 1000.0 + LEASE_S + 1)
    (first, second) = claimed(run, "r2", 2)
    assert (first.data, first.claim.num_deaths, first.lease.fence) == (b"0\n", 1, 2)
    with pytest.raises(NotHeld):
        end(run, lost[0])
    end(run, first)
    with pytest.raises(NotHeld):
        end(run, first)
    run(LINES.release, leases=[second.lease])
    (again,) = claimed(run, "r1", 2)
    assert (again.lease.number, again.claim.num_deaths) == (2, 1)


def test_lines_run_in_the_order_of_their_segments(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment without an order, as older code leaves it, runs in the file's."""
    monkeypatch.setattr(file_table, "SEGMENT_LINES", 4)
    run(make_batch, name="b", num_lines=10)
    run(file_table.put_order, tenant="", file_id="in-b", segment=0, offsets=[2, 0, 3, 1])
    run(file_table.put_order, tenant="", file_id="in-b", segment=2, offsets=[1, 0])
    numbers = [claim.lease.number for limit in (3, 3, 9) for claim in claimed(run, "r", limit)]
    assert numbers == [3, 1, 4, 2, 5, 6, 7, 8, 10, 9]


def test_lines_of_an_expired_batch_end_without_its_model(database: Database, run: Callable[..., Any]) -> None:
    """A replica of that model may have had one of them, and has died."""
    run(make_batch, name="old", num_lines=3, window_s=LEASE_S + 5)
    run(make_batch, name="new", num_lines=2)
    (lost,) = claimed(run, "dead", 1)
    assert (lost.lease.id, lost.model) == ("new", MODEL)
    (lost,) = claimed(run, "dead", 1)
    assert (lost.lease.id, lost.is_expired) == ("old", False)
    assert run(LINES.claim_expired, owner="r", limit=9) == []
    at(database, 1000.0 + LEASE_S + 6)
    claims = run(LINES.claim_expired, owner="r", limit=9)
    assert [(claim.lease.number, claim.is_expired) for claim in claims] == [(1, True), (2, True), (3, True)]
    for claim in claims:
        end(run, claim, fails=True)
    assert run(batch_table.BATCHES.find, tenant="", id="old").status == BatchStatus.EXPIRED
    assert run(batch_table.BATCHES.find, tenant="", id="new").status == BatchStatus.IN_PROGRESS


def test_a_cancelled_batch_refuses_later_lines(database: Database, run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=5)
    first, second = claimed(run, "r", 2)
    end(run, first)
    batch = run(batch_table.cancel, tenant="", batch_id="b")
    assert (batch.status, batch.num_completed) == (BatchStatus.CANCELLED, 1)
    with pytest.raises(NotHeld):
        end(run, second)
    assert claimed(run, "r", 5) == []
    assert output(database, "out-b") == [(1, b"done 0\n")]
    assert run(batch_table.cancel, tenant="", batch_id="b") == batch
    assert run(batch_table.cancel, tenant="other", batch_id="b") is None


def test_each_line_ends_once_whatever_replicas_do(database: Database, run: Callable[..., Any]) -> None:
    """Replicas claim, end, forget and lose lines while the clock moves."""
    chance, now, open_claims = random.Random(3), 1000.0, list[LineClaim]()
    run(make_batch, name="b", num_lines=12)
    while run(batch_table.BATCHES.find, tenant="", id="b").status == BatchStatus.IN_PROGRESS:
        open_claims += claimed(run, chance.choice("rst"), chance.randrange(1, 5))
        chance.shuffle(open_claims)
        for claim in open_claims[: chance.randrange(4)]:
            try:
                end(run, claim)
            except NotHeld:
                open_claims.remove(claim)
        now += chance.choice((1.0, LEASE_S + 1))
        at(database, now)
    assert output(database, "out-b") == [(number + 1, b"done %d\n" % number) for number in range(12)]


def test_old_files_and_batches_are_deleted(database: Database, run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=1)
    run(file_table.begin, tenant="", file_id="unfinished", purpose="batch", name="x")
    at(database, 1000.0 + 4000)
    assert run(file_table.expire, max_age_s=1e5) == [("", "unfinished")]
    assert run(file_table.FILES.remove_hidden)
    assert not run(file_table.FILES.remove_hidden)
    at(database, 1000.0 + 2e5)
    run(batch_table.expire, max_age_s=1e5)
    assert run(file_table.expire, max_age_s=1e5) == []  # a batch in progress reads it
    run(batch_table.cancel, tenant="", batch_id="b")
    run(batch_table.expire, max_age_s=1e5)
    assert run(file_table.expire, max_age_s=1e5) == [("", "in-b")]


def test_a_large_file_is_deleted_piece_by_piece(
    database: Database, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not found from the beginning, and what an interrupted deletion leaves is deleted later."""
    run(make_batch, name="b", num_lines=5)
    run(file_table.put_order, tenant="", file_id="in-b", segment=0, offsets=range(5))
    assert not run(batch_table.hide_file, tenant="", file_id="in-b")  # a batch in progress reads it
    run(batch_table.cancel, tenant="", batch_id="b")
    assert run(batch_table.hide_file, tenant="", file_id="in-b")
    assert run(file_table.FILES.find, tenant="", id="in-b") is None
    assert run(file_table.finish, tenant="", file_id="in-b") is None
    monkeypatch.setattr(objects, "MAX_REMOVED", 3)
    assert run(file_table.FILES.remove_object, tenant="", id="in-b")
    assert run(file_table.expire, max_age_s=1e9) == []
    assert run(file_table.FILES.remove_hidden)
    assert not run(file_table.FILES.remove_hidden)
    for table in ("files", "file_lines", "file_order"):
        assert database.run_now(lambda each, table=table: each.rows(f"SELECT * FROM roost_{table}")) == []


def test_no_batch_is_created_of_a_file_that_is_deleted(run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=1)
    batch = run(batch_table.cancel, tenant="", batch_id="b")
    run(batch_table.hide_file, tenant="", file_id="in-b")
    assert run(batch_table.insert, batch=replace(batch, id="later"), window_s=1.0) is None
    assert run(batch_table.BATCHES.find, tenant="", id="later") is None


def test_lines_of_several_batches_end_together(database: Database, run: Callable[..., Any]) -> None:
    """Those that another replica has claimed, or whose batch was cancelled, are left out."""
    for name, tenant in (("a", "x"), ("b", "y"), ("c", "x")):
        run(make_batch, name=name, num_lines=3, tenant=tenant)
    claims = [claim for _ in range(3) for claim in claimed(run, "r", 3)]
    assert len(claims) == 9
    lost = next(claim for claim in claims if claim.lease.id == "b")
    run(LINES.release, leases=[lost.lease])
    (again,) = claimed(run, "s", 1)
    run(batch_table.cancel, tenant="x", batch_id="c")
    results = {claim.lease: LineResult(b"%d\n" % claim.lease.number, claim.lease.number == 2) for claim in claims}
    held = {claim.lease for claim in claims if claim.lease.id != "c" and claim is not lost}
    assert run(batch_table.end, results=results) == held
    assert run(batch_table.end, results=results) == set()
    assert output(database, "out-a", "x") == [(1, b"1\n"), (3, b"3\n")]
    assert output(database, "err-a", "x") == [(2, b"2\n")]
    assert output(database, "out-c", "x") == []
    a, b, c = (
        run(batch_table.BATCHES.find, tenant=tenant, id=name) for name, tenant in (("a", "x"), ("b", "y"), ("c", "x"))
    )
    assert (a.status, a.num_completed, a.num_failed) == (BatchStatus.COMPLETED, 2, 1)
    assert (b.status, b.num_completed + b.num_failed) == (BatchStatus.IN_PROGRESS, 2)
    assert (c.status, c.num_completed + c.num_failed) == (BatchStatus.CANCELLED, 0)
    end(run, again)
    assert run(batch_table.BATCHES.find, tenant="y", id="b").status == BatchStatus.COMPLETED
    assert run(file_table.FILES.find, tenant="y", id="out-b").num_lines + 1 == 3


def test_tokens_of_a_batch_are_added_up(run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=3)
    first, second, third = (claim.lease for claim in claimed(run, "r", 3))
    results = {
        first: LineResult(b"x", is_failed=False, usage=TokenUsage(10, 4, 2)),
        second: LineResult(b"x", is_failed=True),
    }
    run(batch_table.end, results=results)
    run(batch_table.end, results={third: LineResult(b"x", is_failed=False, usage=TokenUsage(5, 0, 1))})
    batch = run(batch_table.BATCHES.find, tenant="", id="b")
    assert (batch.input_tokens, batch.cached_tokens, batch.output_tokens) == (15, 4, 3)


def test_file_expires_but_for_a_batch_in_progress(database: Database, run: Callable[..., Any]) -> None:
    """It is not found from its last second on, whenever it is deleted."""
    run(make_batch, name="b", num_lines=1)
    run(file_table.begin, tenant="", file_id="f", purpose="batch", name="x")
    assert run(file_table.finish, tenant="", file_id="f", expires_s=60.0).expires == 1060.0
    run(file_table.finish, tenant="", file_id="in-b", expires_s=60.0)
    at(database, 1060.0)
    assert run(file_table.FILES.find, tenant="", id="f") is not None
    assert run(file_table.expire, max_age_s=1e9) == []
    at(database, 1061.0)
    assert run(file_table.FILES.find, tenant="", id="f") is None
    assert run(file_table.FILES.page_of, tenant="", spec=PageSpec(10)).items == []
    assert run(file_table.expire, max_age_s=1e9) == [("", "f")]
    (claim,) = claimed(run, "r", 1)
    end(run, claim)
    assert run(file_table.expire, max_age_s=1e9) == [("", "in-b")]


def test_output_expires_after_the_end_of_its_batch(database: Database, run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=2, output_expires_s=60.0)
    claims = claimed(run, "r", 2)
    at(database, 1500.0)
    for claim in claims:
        end(run, claim, fails=claim.data == b"1\n")
    assert [run(file_table.FILES.find, tenant="", id=name).expires for name in ("out-b", "err-b")] == [1560.0, 1560.0]
    assert run(file_table.FILES.find, tenant="", id="in-b").expires is None


def test_totals(database: Database, run: Callable[..., Any]) -> None:
    run(make_batch, name="b", num_lines=5)
    first, _ = claimed(run, "r", 2)
    end(run, first)
    at(database, 1003.0)
    totals = run(batch_table.totals)
    assert (totals.batches, totals.waiting_lines, totals.running_lines) == ({"in_progress": 1}, 4, 1)
    assert totals.oldest_s == pytest.approx(3.0)


def test_each_batch_needs_a_rate_to_end_in_its_window(database: Database, run: Callable[..., Any]) -> None:
    """Lines of an expired batch are due within a second."""
    at(database, 1000.0)
    for name, num_lines, window_s in (("long", 10, 1000.0), ("short", 5, 10.0)):
        run(make_batch, name=name, num_lines=num_lines, window_s=window_s)
    assert run(batch_table.totals).needed_lines_per_s == pytest.approx(10 / 1000 + 5 / 10)
    at(database, 1200.0)
    assert run(batch_table.totals).needed_lines_per_s == pytest.approx(10 / 800 + 5)


def test_lines_are_read_in_pages(run: Callable[..., Any]) -> None:
    run(file_table.begin, tenant="", file_id="f", purpose="batch", name="x")
    lines = [b"x" * 700_000 + b"%d\n" % number for number in range(5)]
    run(file_table.add_lines, tenant="", file_id="f", first=1, lines=lines, num_bytes=sum(map(len, lines)))
    after, read = 0, []
    while page := run(file_table.lines, tenant="", file_id="f", after=after):
        assert len(page) <= 2
        read += [line for _, line in page]
        after = page[-1][0]
    assert read == lines
