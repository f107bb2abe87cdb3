"""The protocol of leases against a model of it, on both databases."""

from collections import Counter
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from databases import PostgresqlServer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from roost.server.database.database import Transaction
from roost.server.database.dialects import LEASE_S
from roost.server.database.errors import FencedError
from roost.server.storage import claims
from roost.server.storage.claims import Claimant, Places
from roost.server.storage.work import SUSPECT_DEATHS, Claim, Lease, check
from work_tables import MODEL, Tables, work_tables

REPLICAS = {"a": "x86", "b": "x86", "c": "arm"}
"""Replicas, and the engine of each."""

AFTER_S = 2 * LEASE_S
"""Time for which a unit is reserved for replicas with the engine of its results."""


@dataclass
class Modelled:
    """A unit as it should be."""

    owner: str
    fence: int
    lease_until: float
    engine: str | None
    num_bytes: int = 0
    num_deaths: int = 0

    def may_be_claimed(self, engine: str, now: float) -> bool:
        is_reserved = self.engine not in (None, engine) and self.lease_until >= now - AFTER_S
        return self.lease_until <= now and not is_reserved

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths + bool(self.owner) >= SUSPECT_DEATHS

    def take(self, owner: str, now: float) -> None:
        self.owner, self.fence, self.lease_until = owner, self.fence + 1, now + LEASE_S


class Leases(RuleBasedStateMachine):
    """Replicas that write with every lease they ever had, while the clock moves."""

    address = ""

    def __init__(self) -> None:
        super().__init__()
        self.opened = work_tables(self.address)
        self.tables = self.opened.__enter__()
        self.units: dict[str, Modelled] = {}
        self.leases: list[Lease] = []
        self.count = 0

    def teardown(self) -> None:
        self.opened.__exit__(None, None, None)

    def held(self, lease: Lease) -> Modelled | None:
        """Returns the unit of a lease if its holder may write."""
        unit = self.units.get(lease.id)
        return unit if unit is not None and unit.owner and unit.fence == lease.fence else None

    @rule(replica=st.sampled_from(sorted(REPLICAS)))
    def add(self, replica: str) -> None:
        """Twice, as a write is repeated whose end is unknown."""
        name, engine = f"r{self.count:03}", REPLICAS[replica]
        self.count += 1
        first, again = (self.tables.begun("", name, replica, engine=engine) for _ in range(2))
        assert first == again == Lease("", name, 1, 1)
        self.units[name] = Modelled(replica, 1, self.tables.now + LEASE_S, engine)
        self.leases.append(first)

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S + 1, AFTER_S, -LEASE_S]))
    def move_clock(self, seconds: float) -> None:
        """Also back: the clock of a database's new machine may be behind."""
        self.tables.pass_time(seconds)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), engine=st.sampled_from(["x86", "arm", None]), num_bytes=st.integers(0, 9))
    def write(self, data: st.DataObject, engine: str | None, num_bytes: int) -> None:
        """With several leases, as a transaction has writes of many owners."""
        leases = data.draw(st.sets(st.sampled_from(self.leases), min_size=1))
        held = self.tables.run(self.tables.work.extend, dict.fromkeys(leases, (num_bytes, engine)))
        assert held == {lease for lease in leases if self.held(lease)}
        for lease in held:
            unit = self.units[lease.id]
            unit.lease_until, unit.engine, unit.num_bytes = self.tables.now + LEASE_S, engine, num_bytes

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        leases = data.draw(st.sets(st.sampled_from(self.leases), min_size=1, max_size=3))
        held = self.tables.run(self.tables.work.end, list(leases))
        assert held == {lease for lease in leases if self.held(lease)}
        for lease in held:
            del self.units[lease.id]

    @rule(replica=st.sampled_from(sorted(REPLICAS)), limit=st.integers(1, 3), prefers_suspect=st.booleans())
    def claim(self, replica: str, limit: int, prefers_suspect: bool) -> None:
        now, engine = self.tables.now, REPLICAS[replica]
        claimant = Claimant(replica, MODEL, engine, AFTER_S)
        claims = self.tables.claimed(limit, claimant=claimant, prefers_suspect=prefers_suspect)
        free = {name for name, unit in self.units.items() if unit.may_be_claimed(engine, now)}
        suspects = {name for name in free if self.units[name].is_suspect}
        names = {each.lease.id for each in claims}
        if suspects and (prefers_suspect or suspects == free):
            assert (len(names), names <= suspects) == (1, True)
        else:
            assert (len(names), names <= free - suspects) == (min(limit, len(free - suspects)), True)
        for each in claims:
            unit = self.units[each.lease.id]
            unit.num_deaths += bool(unit.owner)
            unit.take(replica, now)
            assert each == Claim(each.lease, unit.num_deaths, 0, unit.engine, unit.num_bytes)
            assert each.lease == Lease("", each.lease.id, 1, unit.fence)
            self.leases.append(each.lease)

    @precondition(lambda self: self.count)
    @rule(data=st.data(), replica=st.sampled_from(sorted(REPLICAS)))
    def seize(self, data: st.DataObject, replica: str) -> None:
        name = f"r{data.draw(st.integers(0, self.count - 1)):03}"
        unit, claim = self.units.get(name), self.tables.run(self.tables.work.seize, replica, "", name)
        assert (claim is not None) == (unit is not None)
        if claim is not None and unit is not None:
            unit.take(replica, self.tables.now)
            assert claim == Claim(Lease("", name, 1, unit.fence), unit.num_deaths, 0, unit.engine, unit.num_bytes)
            self.leases.append(claim.lease)

    @rule(replica=st.sampled_from(sorted(REPLICAS)), data=st.data())
    def renew(self, replica: str, data: st.DataObject) -> None:
        """Of some leases that it ever had, its own or not; of others, tasks have ended."""
        some = data.draw(st.sets(st.sampled_from(self.leases))) if self.leases else set()
        held = self.tables.run(self.tables.work.renew, replica, some)
        owned = {Lease("", name, 1, unit.fence) for name, unit in self.units.items() if unit.owner == replica}
        assert set(held) == owned
        for lease in owned & some:
            self.units[lease.id].lease_until = self.tables.now + LEASE_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), is_death=st.booleans())
    def release(self, data: st.DataObject, is_death: bool) -> None:
        """Twice, as a write is repeated whose end is unknown."""
        lease = data.draw(st.sampled_from(self.leases))
        for _ in range(2):
            self.tables.run(self.tables.work.release, [lease], is_death=is_death)
        if unit := self.held(lease):
            unit.num_deaths += is_death
            unit.owner, unit.lease_until = "", self.tables.now

    @precondition(lambda self: self.units)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.units)))
        self.tables.run(self.tables.work.drop, "other", name)
        self.tables.run(self.tables.work.drop, "", name)
        del self.units[name]


def test_leases_keep_to_the_model(address: str) -> None:
    machine = type("Leases", (Leases,), {"address": address})
    options = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=options)


def test_racing_replicas_claim_each_unit_once(tables: Tables) -> None:
    """Due ones, and new ones."""
    leases = [tables.begun("", f"r{number}", "gone") for number in range(40)]
    tables.run(tables.work.release, leases)
    tables.make_range("", "range", 40)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda number: tables.claimed(3, f"replica {number % 4}"), range(80)))
    while left := tables.claimed(3):  # those that others had locked whenever a replica looked
        found.append(left)
    claims = [each.lease for some in found for each in some]
    assert sorted(claims) == sorted(
        [*(Lease("", f"r{number}", 1, 2) for number in range(40)), *(Lease("", "range", n + 1, 1) for n in range(40))]
    )


def test_an_owner_whose_lease_has_ended_writes_until_another_claims_the_unit(tables: Tables) -> None:
    lease = tables.begun("", "r")
    tables.die()
    assert tables.run(tables.work.extend, {lease: (1, None)}) == {lease}
    tables.die()
    (claim,) = tables.claimed(1)
    for refused in ({lease: (2, None)}, {lease: (2, None), claim.lease: (3, None)}):
        assert lease not in tables.run(tables.work.extend, refused)
    assert tables.run(tables.work.end, [lease]) == set()
    assert not tables.run(tables.work.set_alone, lease)
    for give_back in (tables.work.release, tables.work.refuse):
        tables.run(give_back, [lease])
    assert tables.read("owner, fence, num_bytes, lone_fence, num_refusals") == [("r", 2, 3, 0, 0)]
    with pytest.raises(FencedError, match="r was adopted, ended or deleted by another replica"):
        check(lease, {claim.lease})
    check(claim.lease, {claim.lease})


def test_leases_without_a_running_task_are_not_extended(tables: Tables) -> None:
    """Many are extended in several statements."""
    leases = [tables.begun("", f"r{number}", "me") for number in range(600)]
    tables.pass_time(10.0)
    assert set(tables.run(tables.work.renew, "me", leases[:550])) == set(leases)
    until = Counter(seconds for (seconds,) in tables.read("lease_until"))
    assert until == {1000 + LEASE_S: 50, 1010 + LEASE_S: 550}


def test_leases_in_memory_do_not_end() -> None:
    """The time of day may jump, as after a suspension of the machine, and nobody else can claim the work."""
    with work_tables("memory:") as tables:
        lease = tables.begun("", "r")
        tables.make_range("", "range", 1)
        assert [each.lease.id for each in tables.claimed(2)] == ["range"]
        tables.pass_time(1e9)
        assert tables.claimed(2) == []
        tables.run(tables.work.release, [lease])
        assert [each.lease.id for each in tables.claimed(2)] == ["r"]


def test_a_renewal_does_not_wait_for_a_transaction_that_writes(postgresql: PostgresqlServer) -> None:
    """It runs beside those that end units. SQLite has one writer at a time."""
    with work_tables(postgresql.url) as tables:
        first, second = (tables.begun("", name) for name in "ab")

        def end_and_renew(transaction: Transaction) -> Collection[Lease]:
            tables.work.end(transaction, [first])
            return tables.run(tables.work.renew, "first", [first, second])

        assert set(tables.run(end_and_renew)) == {first, second}
        assert tables.run(tables.work.renew, "first", [second]) == [second]


def test_work_that_is_dropped_leaves_no_unit_that_is_just_claimed(postgresql: PostgresqlServer) -> None:
    """A claim has added units when the other transaction begins to wait for it. SQLite has one writer at a time."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'roost'"
    with work_tables(postgresql.url) as tables, ThreadPoolExecutor(1) as thread:
        tables.make_range("", "r", 9)

        def claim_and_drop(transaction: Transaction) -> Future[None]:
            claims.claim(transaction, tables.work, Claimant("r", MODEL), Places(3, 3))
            dropping = thread.submit(tables.run, tables.work.drop, "", "r")
            while not tables.run(Transaction.rows, waiting):
                assert not dropping.done()
            return dropping

        tables.run(claim_and_drop).result()
        assert tables.read("number") == []
