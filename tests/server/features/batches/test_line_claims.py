"""Turns of tenants, batches and lines, pauses of refused lines, and lines that are suspected, on both databases."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
from batch_rows import MODEL, Run, at, claimed, end, make_batch, runner
from databases import opened
from roost.server.database.database import Database, Transaction
from roost.server.features.batches import batch_table, file_table, line_claims, line_leases, tenant_turns
from roost.server.features.batches.batch_records import MAX_LONE_DEATHS, LineClaim
from roost.server.features.batches.line_leases import LEASE_S


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = opened(address, clocked=True)
    yield database
    database.close()


@pytest.fixture
def run(database: Database) -> Run:
    return runner(database)


@pytest.fixture
def later(database: Database, run: Run) -> Callable[..., list[LineClaim]]:
    """Claims lines, each time a moment later."""
    times = count(1000.1, 0.1)

    def claim(limit: int, **options: Any) -> list[LineClaim]:
        at(database, next(times))
        return claimed(run, "r", limit, **options)

    return claim


def tenants(claims: Sequence[LineClaim]) -> Counter[str]:
    return Counter(claim.lease.tenant for claim in claims)


def numbers(claims: Sequence[LineClaim]) -> list[int]:
    return [claim.lease.number for claim in claims]


def test_tenants_take_turns_whatever_the_number_of_their_batches(
    run: Run, later: Callable[..., list[LineClaim]]
) -> None:
    for number in range(40):
        run(make_batch, name=f"a{number}", num_lines=5, tenant="a")
    run(make_batch, name="b", num_lines=20, tenant="b")
    claims = [tenants(later(16)) for _ in range(4)]
    assert claims == [{"a": 8, "b": 8}, {"a": 8, "b": 8}, {"a": 12, "b": 4}, {"a": 16}]
    run(make_batch, name="c", num_lines=4, tenant="c")
    single = [tenants(later(1)) for _ in range(8)]
    assert single == [{"c": 1}, {"a": 1}] * 4


def test_a_tenant_leaves_places_to_others(run: Run) -> None:
    run(make_batch, name="a", num_lines=30, tenant="a")
    assert tenants(claimed(run, "r", 8, max_of_tenant=6)) == {"a": 6}
    assert claimed(run, "r", 2, max_of_tenant=6, held={"a": 6}) == []
    run(make_batch, name="b", num_lines=30, tenant="b")
    assert tenants(claimed(run, "r", 2, max_of_tenant=6, held={"a": 6})) == {"b": 2}


def test_more_tenants_than_are_served_at_a_time_take_turns(run: Run, later: Callable[..., list[LineClaim]]) -> None:
    for number in range(10):
        run(make_batch, name=f"b{number}", num_lines=40, tenant=f"t{number}")
    counts = sum((tenants(later(4)) for _ in range(10)), Counter[str]())
    assert set(counts.values()) == {4}


def make_many(transaction: Transaction, num_batches: int) -> None:
    """Stores batches of a tenant whose lines wait, and as many due lines."""
    columns = (
        "tenant, id, status, model, url, input_file, output_file, error_file, time_window, metadata, created, expires, "
        "num_lines, num_completed, num_failed, next_line, claimed"
    )
    for first in range(0, num_batches, 500):
        names = [f"b{number:05}" for number in range(first, first + 500)]
        row = f"(?, ?, 'in_progress', '{MODEL}', '', '', '', '', '', ?, 0, 1e9, 9, 0, 0, 1, 0)"
        values = [value for name in names for value in ("many", name, b"")]
        transaction.execute(f"INSERT INTO roost_batches ({columns}) VALUES {', '.join([row] * len(names))}", *values)
        row = f"('many', ?, 9, '{MODEL}', NULL, 1, 1)"
        transaction.execute(
            "INSERT INTO roost_batch_claims (tenant, batch, number, model, owner, fence, lease_until) "
            f"VALUES {', '.join([row] * len(names))}",
            *names,
        )


def plan(database: Database, address: str, query: str, *values: object) -> str:
    """Returns how the database runs a query."""
    explain = "EXPLAIN QUERY PLAN" if address.startswith("sqlite") else "EXPLAIN"
    return "\n".join(str(row) for row in database.run_now(lambda each: each.rows(f"{explain} {query}", *values)))


def test_batches_of_another_tenant_do_not_delay_a_claim(database: Database, run: Run, address: str) -> None:
    """Each statement finds its rows by an index."""
    run(make_many, num_batches=10_000)
    run(make_batch, name="b", num_lines=20, tenant="single")
    if not address.startswith("sqlite"):  # which gathers no statistics by itself
        database.run_now(lambda each: each.execute("ANALYZE"), writes=True)
    turns = plan(database, address, tenant_turns.turns_query(), MODEL, MODEL)
    batches = plan(database, address, line_claims.next_query(), "many", MODEL, 4)
    due = plan(database, address, line_leases.due_query(), "many", MODEL, 4)
    suspects = plan(database, address, line_leases.suspects_query(), MODEL)
    assert "roost_batches_statuses" in turns or "roost_batches_inputs" in turns
    assert "roost_batch_claims_due" in turns
    for each, index in (
        (turns, "roost_batches_waiting"),
        (batches, "roost_batches_waiting"),
        (due, "roost_batch_claims_due"),
    ):
        assert index in each
    for each in (turns, batches, due, suspects):
        assert not re.search("(Seq Scan on|SCAN) roost_batch(es|_claims)(?! USING)", each), each
    assert tenants(claimed(run, "r", 2, max_of_tenant=1)) == {"single": 1}


def test_a_refused_line_goes_behind_the_others_and_waits_longer_each_time(database: Database, run: Run) -> None:
    run(make_batch, name="b", num_lines=3)
    (first,) = claimed(run, "r", 1)
    run(line_leases.refuse, leases=[first.lease])
    others = claimed(run, "r", 2)
    assert numbers(others) == [2, 3]
    for claim in others:
        end(run, claim)
    now = 1000.0
    for pause in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60):
        at(database, now + pause - 0.01)
        assert claimed(run, "r", 1) == []
        at(database, now := now + pause + 0.01)
        (claim,) = claimed(run, "r", 1)
        assert (claim.lease.number, claim.num_deaths) == (1, 0)
        run(line_leases.refuse, leases=[claim.lease])


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_due_lines_take_half_of_a_share_while_there_are_new_ones(database: Database, run: Run, limit: int) -> None:
    run(make_batch, name="b", num_lines=40)
    lost = claimed(run, "dead", 12)
    at(database, 1000.0 + LEASE_S + 1)
    claims = [numbers(claimed(run, "r", limit)) for _ in range(24 // limit)]
    due = [len([number for number in each if number <= len(lost)]) for each in claims]
    assert sum(due) == 12
    assert max(due) - min(due) <= 1
    run(batch_table.cancel, tenant="", batch_id="b")


def test_due_lines_take_all_places_that_no_new_one_wants(database: Database, run: Run) -> None:
    run(make_batch, name="b", num_lines=7)
    claimed(run, "dead", 6)
    at(database, 1000.0 + LEASE_S + 1)
    assert numbers(claimed(run, "r", 9)) == [1, 2, 3, 4, 5, 6, 7]


def test_lines_that_are_given_back_have_lost_no_owner(database: Database, run: Run) -> None:
    """Neither when a replica drains, nor when it is busy, however often."""
    run(make_batch, name="b", num_lines=1)
    for turn in range(10):
        at(database, 1000.0 + 100 * turn)
        (claim,) = claimed(run, f"r{turn}", 1)
        assert (claim.num_deaths, claim.num_lone_deaths, claim.runs_alone) == (0, 0, False)
        run(line_leases.release if turn % 2 else line_leases.refuse, leases=[claim.lease])


def test_only_deaths_of_replicas_that_ran_it_alone_end_a_line(database: Database, run: Run) -> None:
    """A replica that dies before it runs the line alone may have died of another."""
    run(make_batch, name="b", num_lines=1)
    now = 1000.0

    def next_owner(*, runs_alone: bool) -> LineClaim:
        nonlocal now
        now += LEASE_S + 1
        at(database, now)
        (claim,) = claimed(run, f"r{now}", 5)
        if runs_alone:
            assert run(line_leases.mark_alone, lease=claim.lease)
        return claim

    claims = [next_owner(runs_alone=False) for _ in range(8)]
    assert [claim.num_deaths for claim in claims] == list(range(8))
    assert [claim.runs_alone for claim in claims] == [False, False, *[True] * 6]
    claims = [next_owner(runs_alone=True) for _ in range(MAX_LONE_DEATHS)]
    assert [(claim.num_lone_deaths, claim.is_deadly) for claim in claims] == [(0, False), (1, False), (2, False)]
    assert not run(line_leases.mark_alone, lease=claims[0].lease)
    last = next_owner(runs_alone=False)
    assert (last.num_lone_deaths, last.is_deadly, last.runs_alone) == (MAX_LONE_DEATHS, True, False)


def test_suspects_of_tenants_take_turns_one_at_a_time(
    database: Database, run: Run, later: Callable[..., list[LineClaim]]
) -> None:
    """They come before other lines, unless the replica takes none now."""
    for name in "ab":
        run(make_batch, name=name, num_lines=6, tenant=name)
    assert len(claimed(run, "dead", 6)) == 6
    change = "UPDATE roost_batch_claims SET num_deaths = 1, lease_until = 0 WHERE number <= 2"
    database.run_now(lambda each: each.execute(change), writes=True)
    assert [claim.runs_alone for claim in later(4, takes_suspect=False)] == [False] * 4
    found = [later(4) for _ in range(4)]
    assert [len(each) for each in found] == [1] * 4
    assert all(claim.runs_alone for (claim,) in found)
    owners = [claim.lease.tenant for (claim,) in found]
    assert owners in (["a", "b"] * 2, ["b", "a"] * 2)
    assert not any(claim.runs_alone for claim in later(4))


def test_a_tenant_without_room_for_output_waits_and_keeps_nobody_waiting(database: Database, run: Run) -> None:
    for name in ("a", "b"):
        run(make_batch, name=name, num_lines=20, tenant=name)
    first = [claim for claim in claimed(run, "r", 8) if claim.lease.tenant == "a"]
    for claim in first:
        end(run, claim)
    size = 50 + sum(len(b"done " + claim.data) for claim in first)  # of the input, and of the output
    for turn in range(3):
        at(database, 1001.0 + turn)
        assert tenants(claimed(run, "r", 4, max_bytes=size)) == {"b": 4}
    assert tenants(claimed(run, "r", 4, max_bytes=size + 1)) == {"a": 2, "b": 2}
    run(file_table.FILES.hide, tenant="b", id="in-b")
