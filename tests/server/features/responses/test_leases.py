"""The protocol of leases against a model of it, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
from databases import opened
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from roost.server.database.database import Database, Transaction
from roost.server.database.errors import FencedError
from roost.server.features.responses import claim_table, event_table, expiry_table, response_table
from roost.server.features.responses.records import (
    CheckpointReference,
    Deaths,
    Job,
    Lease,
    LogEnd,
    LogEntry,
    ResponseRecord,
)
from roost.server.features.responses.response_table import LEASE_S

JOB = Job("model", b"{}", b"\1\0\0\0")
REPLICAS = {"a": "x86", "b": "x86", "c": "arm"}
"""Replicas, and the engine of each."""

AFTER_S = 2 * LEASE_S
"""Time for which a response is left to replicas with its own engine."""


def running(number: int, tenant: str = "") -> ResponseRecord:
    return ResponseRecord(tenant, f"r{number}", b"pending", b"[]", b"[]", True, True, True)


def entry(number: int, text: bytes = b"x") -> LogEntry:
    return LogEntry(number, number, 1, number, 1, b"delta", text)


@dataclass
class Modelled:
    """A response as it should be.

    Attributes:
      engine: Engine that decoded the log.
      is_exact: Whether it decoded all of the log.
    """

    owner: str
    fence: int
    lease_until: float
    engine: str
    is_exact: bool = True
    log: list[bytes] = field(default_factory=list)
    is_running: bool = True
    num_deaths: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the log."""
        return sum(len(b"delta" + text) for text in self.log)

    def may_be_claimed(self, engine: str, now: float) -> bool:
        is_free = self.is_running and self.lease_until <= now
        is_left_to_others = self.is_exact and self.log and engine != self.engine
        return is_free and not (is_left_to_others and self.lease_until >= now - AFTER_S)

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths + bool(self.owner) >= 2

    def take(self, owner: str, engine: str | None, now: float, *, is_death: bool = False) -> None:
        self.is_exact = engine is not None and (not self.log or (self.is_exact and engine == self.engine))
        self.engine = engine if engine is not None and self.is_exact else self.engine
        self.owner, self.fence, self.lease_until = owner, self.fence + 1, now + LEASE_S
        self.num_deaths += is_death


class Leases(RuleBasedStateMachine):
    """Replicas that write with every lease they ever had, while the clock moves."""

    address = ""

    def __init__(self) -> None:
        super().__init__()
        self.database = opened(self.address, clocked=True)
        self.now = 1000.0
        self.responses: dict[str, Modelled] = {}
        self.leases: list[tuple[str, Lease]] = []
        self.count = 0

    def run(self, work: object) -> object:
        return self.database.run_now(work, writes=True)  # type: ignore[arg-type]

    def teardown(self) -> None:
        self.database.close()

    @rule(replica=st.sampled_from(sorted(REPLICAS)))
    def insert(self, replica: str) -> None:
        record = running(self.count)
        self.count += 1
        job = replace(JOB, engine=REPLICAS[replica])
        lease = self.database.run_now(lambda each: response_table.insert(each, record, job, replica), writes=True)
        self.responses[record.id] = Modelled(replica, 1, self.now + LEASE_S, REPLICAS[replica])
        self.leases.append((replica, lease))

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S + 1, AFTER_S, -LEASE_S]))
    def move_clock(self, seconds: float) -> None:
        """Also back: the clock of a database's new machine may be behind."""
        self.now += seconds
        self.run(lambda each: each.execute("UPDATE test_clock SET now = ?", self.now))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), ends=st.booleans())
    def write(self, data: st.DataObject, ends: bool) -> None:
        _, lease = data.draw(st.sampled_from(self.leases))
        model = self.responses.get(lease.id)
        may = model is not None and model.is_running and model.fence == lease.fence
        text = b"%d by %d;" % (len(model.log) if model is not None else 0, lease.fence)
        line = entry(len(model.log) if model is not None else 0, text)
        num_bytes = line.num_bytes + (model.num_bytes if model is not None else 0)

        def work(each: Transaction) -> None:
            if ends:
                response_table.end(each, lease, line, b"done", b"[1]", num_bytes)
            elif lease not in response_table.append_all(each, [(lease, line, num_bytes)]):
                raise response_table.refused(lease)

        if not may:
            with pytest.raises(FencedError):
                self.run(work)
            return
        self.run(work)
        assert model is not None
        model.log.append(text)
        if ends:
            model.is_running = False
        else:
            model.lease_until = self.now + LEASE_S

    @rule(replica=st.sampled_from(sorted(REPLICAS)), limit=st.integers(1, 3))
    def claim(self, replica: str, limit: int) -> None:
        engine = REPLICAS[replica]
        claims = self.database.run_now(
            lambda each: claim_table.claim(each, replica, "model", limit, engine, AFTER_S), writes=True
        )
        free = [name for name, each in self.responses.items() if each.may_be_claimed(engine, self.now)]
        suspects = {name for name in free if self.responses[name].is_suspect}
        assert {each.lease.id for each in claims} <= set(free)
        if suspects.isdisjoint(each.lease.id for each in claims):
            assert len(claims) == min(limit, len(free)) or suspects
        else:
            assert len(claims) == 1
        for each in claims:
            model = self.responses[each.lease.id]
            model.take(replica, engine, self.now, is_death=bool(model.owner))
            assert (each.lease.fence, each.is_exact, each.deaths) == (
                model.fence,
                model.is_exact,
                Deaths(model.num_deaths, 0),
            )
            assert each.log == LogEnd(len(model.log), len(model.log), len(model.log), model.num_bytes)
            assert each.job == replace(JOB, engine=model.engine)
            self.leases.append((replica, each.lease))

    @rule(replica=st.sampled_from(sorted(REPLICAS)))
    def claim_another_model(self, replica: str) -> None:
        assert self.database.run_now(lambda each: claim_table.claim(each, replica, "other", 9), writes=True) == []

    @precondition(lambda self: self.responses)
    @rule(data=st.data(), replica=st.sampled_from(sorted(REPLICAS)))
    def seize(self, data: st.DataObject, replica: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.responses)))
        model = self.responses[name]
        claim = self.database.run_now(lambda each: claim_table.seize(each, replica, "", name), writes=True)
        assert (claim is not None) == model.is_running
        if claim is not None:
            model.take(replica, None, self.now)
            assert claim.lease.fence == model.fence
            self.leases.append((replica, claim.lease))

    @rule(replica=st.sampled_from(sorted(REPLICAS)), data=st.data())
    def renew(self, replica: str, data: st.DataObject) -> None:
        """Of some leases that it ever had, its own or not; of others, tasks have ended."""
        some = data.draw(st.sets(st.sampled_from([lease for _, lease in self.leases]))) if self.leases else set()
        held = self.database.run_now(lambda each: response_table.renew(each, replica, some), writes=True)
        owned = {name: each for name, each in self.responses.items() if each.is_running and each.owner == replica}
        assert {(lease.id, lease.fence) for lease in held} == {(name, each.fence) for name, each in owned.items()}
        for name, each in owned.items():
            if Lease("", name, each.fence) in some:
                each.lease_until = self.now + LEASE_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), is_death=st.booleans())
    def release(self, data: st.DataObject, is_death: bool) -> None:
        """Twice, as a write is repeated whose end is unknown."""
        _, lease = data.draw(st.sampled_from(self.leases))
        for _ in range(2):
            self.run(lambda each: response_table.release(each, [lease], is_death=is_death))
        model = self.responses.get(lease.id)
        if model is not None and model.is_running and model.fence == lease.fence:
            model.num_deaths += is_death and bool(model.owner)
            model.owner, model.lease_until = "", self.now

    @precondition(lambda self: self.responses)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.responses)))
        assert self.run(lambda each: response_table.delete(each, "", name)) is True
        del self.responses[name]

    @invariant()
    def logs_are_as_they_should_be(self) -> None:
        for name, model in self.responses.items():
            found = self.database.run_now(lambda each, name=name: event_table.entries(each, "", name, 0))
            assert [line.events for line in found] == model.log
            assert [line.number for line in found] == list(range(len(model.log)))
            record = self.database.run_now(lambda each, name=name: response_table.RESPONSES.find(each, "", name))
            assert record is not None
            assert (record.is_running, record.response) == (
                model.is_running,
                b"pending" if model.is_running else b"done",
            )


def test_leases_keep_to_the_model(address: str) -> None:
    machine = type("Leases", (Leases,), {"address": address})
    options = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=options)


def run(database: Database, name: str, *arguments: object) -> object:
    rooms = (response_table, claim_table, event_table, expiry_table, response_table.RESPONSES)
    work = next(getattr(room, name) for room in rooms if hasattr(room, name))
    return database.run_now(lambda each: work(each, *arguments), writes=True)


def test_racing_replicas_adopt_each_response_once(address: str) -> None:
    database = opened(address)
    leases = [run(database, "insert", running(number), JOB, "gone") for number in range(40)]
    run(database, "release", leases)
    with ThreadPoolExecutor(4) as threads:
        rounds = [(f"replica {number % 4}", "model", 3) for number in range(60)]
        claims = [each for found in threads.map(lambda each: run(database, "claim", *each), rounds) for each in found]  # type: ignore[attr-defined]
    assert sorted(each.lease.id for each in claims) == sorted(f"r{number}" for number in range(40))
    assert {each.lease.fence for each in claims} == {2}
    database.close()


def test_a_repeated_write_changes_nothing(address: str) -> None:
    """A write is repeated if the database goes away between its commit and the news of it."""
    database = opened(address)
    lease = run(database, "insert", running(1), JOB, "a")
    assert run(database, "insert", running(1), JOB, "a") == lease
    for _ in range(2):
        run(database, "append_all", [(lease, entry(0), 6)])
    assert [each.number for each in run(database, "entries", "", "r1", 0)] == [0]  # type: ignore[attr-defined]
    database.close()


def test_tenants_are_apart(address: str) -> None:
    database = opened(address)
    run(database, "insert", running(1, "mine"), JOB, "a")
    assert run(database, "find", "other", "r1") is None
    assert run(database, "seize", "b", "other", "r1") is None
    assert run(database, "delete", "other", "r1") is False
    assert run(database, "follow", "other", "r1", 0) == ([], False)
    assert run(database, "find", "mine", "r1") == running(1, "mine")
    database.close()


def test_a_stream_is_followed_from_any_event(address: str) -> None:
    database = opened(address)
    lease = run(database, "insert", running(1), JOB, "a")
    assert run(database, "end_of_log", "", "r1") == LogEnd()
    assert run(database, "entry_of", "", "r1", 0) == 0
    run(database, "append_all", [(lease, LogEntry(0, 0, 2, 0, 0, b"", b"ab"), 2)])
    run(database, "append_all", [(lease, LogEntry(1, 2, 0, 0, 3, b"held back", b""), 11)])
    run(database, "append_all", [(lease, LogEntry(2, 2, 1, 3, 1, b"delta", b"c"), 17)])
    assert [run(database, "entry_of", "", "r1", n) for n in range(5)] == [0, 0, 2, 3, 3]
    assert run(database, "end_of_log", "", "r1") == LogEnd(3, 3, 4)
    texts = [b"".join(each.events for each in run(database, "follow", "", "r1", n)[0]) for n in range(4)]
    assert texts == [b"abc", b"c", b"c", b""]
    assert run(database, "follow", "", "r1", 3) == ([], True)
    run(database, "end", lease, LogEntry(3, 3, 1, 4, 0, b"", b"d"), b"done", b"[]", 18)
    entries, is_running = run(database, "follow", "", "r1", 2)
    assert (b"".join(each.events for each in entries), is_running) == (b"cd", False)
    database.close()


def test_a_checkpoint_is_kept_until_the_end(address: str) -> None:
    database = opened(address)
    lease = run(database, "insert", running(1), JOB, "a")
    run(database, "set_checkpoint", lease, CheckpointReference("state-1", 7))
    claim = run(database, "seize", "b", "", "r1")
    assert claim.checkpoint == CheckpointReference("state-1", 7)  # type: ignore[attr-defined]
    run(database, "set_checkpoint", claim.lease, CheckpointReference("state-3", 9))  # type: ignore[attr-defined]
    assert run(database, "seize", "c", "", "r1").checkpoint == CheckpointReference("state-3", 9)  # type: ignore[attr-defined]
    with pytest.raises(FencedError):
        run(database, "set_checkpoint", lease, CheckpointReference("state-2", 8))
    database.close()


def test_a_log_that_an_older_replica_continued_is_inexact(address: str) -> None:
    """Such a replica knows nothing of engines, and reads the tokens as a prompt."""
    database = opened(address)
    lease = run(database, "insert", running(1), replace(JOB, engine="x86"), "a")
    run(database, "append_all", [(lease, entry(0), 6)])
    database.run_now(lambda each: each.execute("UPDATE roost_responses SET fence = fence + 1"), writes=True)
    run(database, "release", [Lease("", "r1", 2)])
    (claim,) = run(database, "claim", "b", "model", 1, "x86", 1e9)
    assert (claim.lease.fence, claim.is_exact) == (3, False)
    run(database, "release", [claim.lease])
    (claim,) = run(database, "claim", "c", "model", 1, "x86", 1e9)
    assert not claim.is_exact, "it never becomes exact again"
    database.close()


def test_the_oldest_of_a_tenant_expire(address: str) -> None:
    database = opened(address, clocked=True)
    for number in range(6):
        run(database, "put", ResponseRecord("much", f"r{number}", bytes(1000), b"", b""))
        database.run_now(lambda each: each.execute("UPDATE test_clock SET now = now + 10"), writes=True)
    run(database, "put", ResponseRecord("little", "x", bytes(1000), b"", b""))
    run(database, "insert", running(9, "much"), JOB, "a")

    def left() -> list[str]:
        names = [f"r{number}" for number in range(6)]
        return [name for name in names if run(database, "find", "much", name) is not None]

    def expire(max_age_s: float, *bounds: int) -> object:
        names = run(database, "expired", max_age_s, expiry_table.RowLimits(*bounds))
        run(database, "delete_all", names)
        return [response_id for _, response_id in names]  # type: ignore[attr-defined]

    assert expire(1e9, 5, 10**9) == ["r0"]
    assert left() == ["r1", "r2", "r3", "r4", "r5"]
    assert expire(1e9, 5, 3500) == ["r1", "r2"]
    assert left() == ["r3", "r4", "r5"]
    assert expire(25.0, 5, 10**9) == ["r3"]
    assert left() == ["r4", "r5"]
    assert run(database, "find", "little", "x") is not None
    assert run(database, "find", "much", "r9") is not None, "it is still running"
    assert run(database, "count_running", 60.0) == (1, 0, 0)
    database.close()


def test_what_nobody_adopts_is_counted_and_expires(address: str) -> None:
    database = opened(address, clocked=True)
    leases = [run(database, "insert", running(number), JOB, "a") for number in range(3)]
    run(database, "release", leases[:1])
    assert run(database, "count_running", 60.0) == (3, 1, 0)
    database.run_now(lambda each: each.execute("UPDATE test_clock SET now = now + 70"), writes=True)
    run(database, "append_all", [(leases[2], entry(0), 6)])
    assert run(database, "count_running", 60.0) == (3, 2, 1)
    assert run(database, "expired", 69.0, expiry_table.RowLimits(5, 10**9)) == [("", "r0")]
    run(database, "delete_all", [("", "r0")])
    assert run(database, "find", "", "r0") is None
    assert run(database, "count_running", 60.0) == (2, 1, 0)
    database.close()
