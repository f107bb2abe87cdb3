"""Turns of tenants, suspects, reserved units, and plans of the statements with which replicas claim work."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from query_plans import scans_of
from roost.server.database.database import Transaction
from roost.server.storage import claims
from roost.server.storage.claims import Claimant, Places
from roost.server.storage.work import MAX_LONE_DEATHS, Claim, Lease, WorkTable
from work_tables import MODEL, TABLE, Tables


def tenants(found: Sequence[Claim]) -> Counter[str]:
    return Counter(each.lease.tenant for each in found)


def numbers(found: Sequence[Claim]) -> list[int]:
    return [each.lease.number for each in found]


def names(found: Sequence[Claim]) -> list[str]:
    return [f"{each.lease.tenant}/{each.lease.id}" for each in found]


def later(tables: Tables, limit: int, **places: Any) -> list[Claim]:
    """Claims units, each time a moment later."""
    tables.pass_time(0.1)
    return tables.claimed(limit, **places)


def test_tenants_take_turns_whatever_the_number_of_their_ranges(tables: Tables) -> None:
    for number in range(40):
        tables.make_range("a", f"a{number:02}", 5)
    tables.make_range("b", "b", 20)
    found = [tenants(later(tables, 16)) for _ in range(4)]
    assert found == [{"a": 8, "b": 8}, {"a": 8, "b": 8}, {"a": 12, "b": 4}, {"a": 16}]
    tables.make_range("c", "c", 4)
    single = [tenants(later(tables, 1)) for _ in range(8)]
    assert single == [{"c": 1}, {"a": 1}] * 4


def test_tenants_take_turns_whatever_the_number_of_their_due_units(tables: Tables) -> None:
    """One of them has them by the hundred, which are older than all others."""
    leases = [tables.begun("greedy", f"r{number:03}") for number in range(300)]
    leases += [tables.begun(tenant, f"r{number}") for tenant in ("amy", "zoe") for number in range(2)]
    tables.run(tables.work.release, leases)
    assert tenants(later(tables, 3)) == {"amy": 1, "greedy": 1, "zoe": 1}
    assert tenants(later(tables, 8)) == {"amy": 1, "greedy": 6, "zoe": 1}
    turns = []
    for number in range(4):
        tables.run(tables.work.release, [tables.begun("amy", f"more{number}")])
        turns += names(later(tables, 1))
    assert [name.partition("/")[0] for name in turns] == ["amy", "greedy", "amy", "greedy"]


def test_ranges_of_a_tenant_take_turns(tables: Tables) -> None:
    for name in "abc":
        tables.make_range("", name, 50)
    counts = Counter(name for _ in range(10) for name in names(later(tables, 4)))
    assert counts == {"/a": 14, "/b": 13, "/c": 13}


def test_more_tenants_than_are_served_at_a_time_take_turns(tables: Tables) -> None:
    for number in range(10):
        tables.make_range(f"t{number}", "x", 40)
    counts = sum((tenants(later(tables, 4)) for _ in range(10)), Counter[str]())
    assert set(counts.values()) == {4}


def test_those_that_wait_longest_come_first(tables: Tables) -> None:
    for name in ("c", "a", "b"):
        tables.run(tables.work.release, [tables.begun("", name)])
        tables.pass_time(1.0)
    assert names(tables.claimed(8)) == ["/c", "/a", "/b"]


def test_a_tenant_leaves_places_to_others(tables: Tables) -> None:
    tables.make_range("a", "a", 30)
    assert tenants(tables.claimed(8, max_of_tenant=6)) == {"a": 6}
    assert tables.claimed(2, max_of_tenant=6, held={"a": 6}) == []
    tables.make_range("b", "b", 30)
    assert tenants(tables.claimed(2, max_of_tenant=6, held={"a": 6})) == {"b": 2}


class Bounded(WorkTable):
    """Work of which some tenants get none."""

    full: Collection[str] = ()

    def has_room(self, transaction: Transaction, tenant: str) -> bool:
        return tenant not in self.full


def test_a_tenant_that_may_get_nothing_keeps_nobody_waiting(tables: Tables) -> None:
    tables.work = Bounded(TABLE)
    for name in "abcdef":
        tables.make_range(name, name, 40)
    tables.work.full = "abcd"
    assert tenants(later(tables, 4)) == {"e": 2, "f": 2}
    tables.run(tables.work.take_new, "dead", [("e", "e", MODEL, 30, 30)], 1)
    tables.rows(f"UPDATE {TABLE} SET num_deaths = 2, lease_until = 0 WHERE number = 30")
    tables.work.full = "abcde"
    assert tenants(later(tables, 4)) == {"f": 4}, "not even its suspects"


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_due_units_take_half_of_a_share_while_there_are_new_ones(tables: Tables, limit: int) -> None:
    tables.make_range("", "b", 40)
    lost = tables.claimed(12, "dead")
    tables.die()
    found = [numbers(tables.claimed(limit)) for _ in range(24 // limit)]
    due = [len([number for number in each if number <= len(lost)]) for each in found]
    assert sum(due) == 12
    assert max(due) - min(due) <= 1


def test_due_units_take_all_places_that_no_new_one_wants(tables: Tables) -> None:
    tables.make_range("", "b", 7)
    tables.claimed(6, "dead")
    tables.die()
    assert numbers(tables.claimed(9)) == [1, 2, 3, 4, 5, 6, 7]
    assert tables.read("is_range") == [(0,)] * 7, "a range ends with its last unit"


def test_another_model_claims_nothing(tables: Tables) -> None:
    tables.make_range("", "b", 7)
    tables.begun("", "r")
    tables.die()
    assert tables.claimed(9, claimant=Claimant("r", "another")) == []


def test_suspects_of_tenants_take_turns_one_at_a_time(tables: Tables) -> None:
    """They come before other units, or after them."""
    for name in "ab":
        tables.make_range(name, name, 6)
    assert len(tables.claimed(6, "dead")) == 6
    tables.rows(f"UPDATE {TABLE} SET num_deaths = 1, lease_until = 0 WHERE is_range = 0 AND number <= 2")
    assert [each.is_suspect for each in later(tables, 4, prefers_suspect=False)] == [False] * 4
    found = [later(tables, 4) for _ in range(3)]
    assert [len(each) for each in found] == [1] * 3
    assert all(each.is_suspect for (each,) in found)
    owners = [each.lease.tenant for (each,) in found]
    assert owners in (["a", "b", "a"], ["b", "a", "b"])
    assert numbers(later(tables, 4, prefers_suspect=False)) == [6, 6]
    (last,) = later(tables, 4, prefers_suspect=False)
    assert last.is_suspect, "there is nothing else"
    assert later(tables, 4) == []


def test_only_deaths_of_replicas_that_ran_it_alone_end_a_unit(tables: Tables) -> None:
    """A replica that dies before it runs the unit alone may have died of another."""
    tables.begun("", "r")

    def next_owner(*, runs_alone: bool) -> Claim:
        tables.die()
        (found,) = tables.claimed(5, f"r{tables.now}")
        if runs_alone:
            assert tables.run(tables.work.set_alone, found.lease)
        return found

    found = [next_owner(runs_alone=False) for _ in range(8)]
    assert [each.num_deaths for each in found] == list(range(1, 9))
    assert [each.is_suspect for each in found] == [False, *[True] * 7]
    found = [next_owner(runs_alone=True) for _ in range(MAX_LONE_DEATHS)]
    assert [(each.num_lone_deaths, each.is_deadly) for each in found] == [(0, False), (1, False), (2, False)]
    assert not tables.run(tables.work.set_alone, found[0].lease)
    last = next_owner(runs_alone=False)
    assert (last.num_lone_deaths, last.is_deadly, last.is_suspect) == (MAX_LONE_DEATHS, True, False)


def test_progress_does_not_undo_deaths(tables: Tables) -> None:
    """A unit of which each owner stores something before it dies is not claimed for ever."""
    tables.begun("", "r")
    for num_deaths in range(1, 6):
        tables.die()
        (found,) = tables.claimed(1)
        assert (found.num_deaths, found.num_lone_deaths) == (num_deaths, max(num_deaths - 2, 0))
        if found.is_suspect:
            tables.run(tables.work.set_alone, found.lease)
        assert tables.run(tables.work.extend, {found.lease: (num_deaths, None)}) == {found.lease}
    assert found.is_deadly


def test_a_death_beside_others_counts_against_none(tables: Tables) -> None:
    """Such as after the time for which a unit runs alone."""
    tables.begun("", "r")
    for _ in range(5):
        tables.die()
        (found,) = tables.claimed(1)
        assert found.num_lone_deaths == 0
        tables.run(tables.work.set_alone, found.lease)
        tables.run(tables.work.set_alone, found.lease, is_alone=False)


def test_units_that_are_given_back_have_lost_no_owner(tables: Tables) -> None:
    """Neither when a replica drains, nor when it is busy, nor when another cancels them, however often."""
    lease = tables.begun("", "r")
    for turn in range(10):
        tables.run(tables.work.release if turn % 2 else tables.work.refuse, [lease])
        tables.pass_time(100.0)
        (found,) = tables.claimed(1, f"r{turn}")
        assert (found.num_deaths, found.num_lone_deaths, found.is_suspect) == (0, 0, False)
        lease = found.lease
    seized = tables.run(tables.work.seize, "other", "", "r")
    assert seized == Claim(Lease("", "r", 1, lease.fence + 1))


def test_an_engine_that_died_counts_as_a_death_once(tables: Tables) -> None:
    lease = tables.begun("", "r")
    for num_lone_deaths in range(2):
        for _ in range(2):  # as a write is repeated whose end is unknown
            tables.run(tables.work.release, [lease], is_death=True)
        (found,) = tables.claimed(1)
        assert (found.num_deaths, found.num_lone_deaths) == (num_lone_deaths + 1, num_lone_deaths)
        lease = found.lease
        tables.run(tables.work.set_alone, lease)


def test_a_refused_unit_waits_longer_each_time(tables: Tables) -> None:
    tables.make_range("", "b", 3)
    (first,) = tables.claimed(1)
    tables.run(tables.work.refuse, [first.lease])
    others = tables.claimed(2)
    assert numbers(others) == [2, 3]
    tables.run(tables.work.end, [each.lease for each in others])
    for pause in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60):
        tables.pass_time(pause - 0.01)
        assert tables.claimed(1) == []
        tables.pass_time(0.02)
        (found,) = tables.claimed(1)
        assert (found.lease.number, found.num_deaths) == (1, 0)
        tables.run(tables.work.refuse, [found.lease])


def test_a_unit_is_reserved_for_its_engine(tables: Tables) -> None:
    """For a time; nobody can continue exactly what several engines have decoded."""
    arm, x86 = (Claimant("r", MODEL, engine, 60.0) for engine in ("arm", "x86"))
    tables.run(tables.work.release, [tables.begun("", "r", engine="x86")])
    assert tables.claimed(1, claimant=arm) == []
    tables.pass_time(50.0)
    (found,) = tables.claimed(1, claimant=x86)
    assert found.engine == "x86"
    tables.run(tables.work.release, [found.lease])
    tables.pass_time(61.0)
    (found,) = tables.claimed(1, claimant=arm)
    assert found.engine == "x86", "nothing was written yet"
    tables.run(tables.work.extend, {found.lease: (9, None)})
    tables.run(tables.work.release, [found.lease])
    (found,) = tables.claimed(1, claimant=x86)
    assert (found.engine, found.num_bytes) == (None, 9)


QUERIES = {
    "turns": (claims.turns_query, (MODEL, MODEL, MODEL, MODEL, None, 60.0)),
    "ranges": (claims.ranges_query, (MODEL, "t1", 4)),
    "due": (claims.due_query, (MODEL, "t1", None, 60.0, 4)),
    "suspects": (claims.suspects_query, (MODEL, None, 60.0)),
}


def test_no_statement_scans_work(tables: Tables) -> None:
    """Each finds its rows by an index, whatever others have."""

    def fill(transaction: Transaction) -> None:
        transaction.execute(
            f"""
            INSERT INTO {TABLE} (tenant, id, number, model, owner, fence, lease_until, is_range, next_unit, num_units)
            WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 4000)
            SELECT 't' || (number - number / 40 * 40), 'r' || number, number / 2, '{MODEL}', 'owner' || (number / 20),
                1, number, number - number / 2 * 2, 1, 9 FROM numbers
            """
        )
        transaction.execute(f"INSERT INTO {TABLE}_turns SELECT DISTINCT id, 0, 1 FROM {TABLE}")
        transaction.execute("ANALYZE")

    tables.run(fill)
    explain = "EXPLAIN" if tables.database._dialect.lock_schema else "EXPLAIN QUERY PLAN"
    for name, (query, values) in QUERIES.items():
        plan = str(tables.run(Transaction.rows, f"{explain} {query(tables.work)}", *values))
        assert not re.search(rf"(Seq Scan on|SCAN) {TABLE}(?! USING)", plan), (name, plan)
        assert f"{TABLE}_{'suspects' if name == 'suspects' else 'due'}" in plan, (name, plan)
    lease = Lease("t1", "r41", 20, 1)
    for name, work in {
        "claim": lambda each: claims.claim(each, tables.work, Claimant("r", MODEL), Places(8, 8)),
        "renew": lambda each: tables.work.renew(each, "owner3", [lease]),
        "extend": lambda each: tables.work.extend(each, {lease: (1, None)}),
        "set alone": lambda each: tables.work.set_alone(each, lease),
        "refuse": lambda each: tables.work.refuse(each, [lease]),
        "end": lambda each: tables.work.end(each, [lease]),
        "seize": lambda each: tables.work.seize(each, "r", "t1", "r1"),
        "drop": lambda each: tables.work.drop(each, "t1", "r1"),
    }.items():
        assert not scans_of(tables.database, work) - {"test_clock"}, name
