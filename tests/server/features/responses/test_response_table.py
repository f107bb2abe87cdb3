"""Statements on responses: writes of former owners, quotas, deletions, and plans, on both databases."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from databases import opened
from query_plans import scans_of
from roost.server.database.database import Database, Transaction
from roost.server.database.dialects import LEASE_S
from roost.server.database.errors import FencedError
from roost.server.database.group_commit import run_each
from roost.server.features.responses import conversations, event_log, expansion, response_table
from roost.server.features.responses.conversations import CONVERSATIONS, RUNNING, TURN, Item, Turn
from roost.server.features.responses.event_log import BEFORE_FIRST, LogEntry
from roost.server.features.responses.expansion import StoredPart
from roost.server.features.responses.response_table import RESPONSES, Adoption, Append, Job, ResponseRecord
from roost.server.storage.claims import Claimant, Places
from roost.server.storage.objects import Bounds, PageSpec
from roost.server.storage.work import Lease

INDEXES = {
    "roost_responses_running",
    "sqlite_autoindex_roost_running_1",
    *(f"roost_running{end}" for end in ("", "_due", "_owners", "_pkey")),
}
"""Running responses, and their indexes."""


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = opened(address, clocked=True)
    yield database
    database.close()


@pytest.fixture
def run(database: Database) -> Callable[..., Any]:
    """Runs a function of a transaction, and commits."""
    return lambda work, *arguments: database.run_now(lambda each: work(each, *arguments), writes=True)


def running(name: str, tenant: str = "", *, is_streamed: bool = True) -> Job:
    record = ResponseRecord(
        tenant, name, b"pending", b"[]", b"[]", True, is_streamed, is_running=True, request=b"{}", prompt=b"\1\0\0\0"
    )
    return Job(record, "model", "x86")


def entry(number: int, text: bytes = b"x") -> LogEntry:
    return LogEntry(number, number, 1, number, 1, b"delta", text)


def claimed(run: Callable[..., Any], engine: str | None = None) -> list[Adoption]:
    return run(response_table.claim, Claimant("next", "model", engine), Places(8, 8))


def pass_time(run: Callable[..., Any], seconds: float) -> None:
    run(Transaction.execute, "UPDATE test_clock SET now = now + ?", seconds)


def test_an_owner_that_was_stopped_past_its_lease_writes_nothing(run: Callable[..., Any]) -> None:
    """The response goes on after what it had stored before."""

    def rows() -> list[Any]:
        tables = ("roost_responses", "roost_events", RUNNING.name)
        return [run(Transaction.rows, f"SELECT * FROM {table}") for table in tables]

    lease = run(response_table.insert, running("r"), "stopped")
    assert run(response_table.append_all, [Append(lease, entry(0), 6, "x86")]) == {lease}
    run(response_table.set_checkpoint, lease, "state-1")
    pass_time(run, LEASE_S + 1)
    (adoption,) = claimed(run, "x86")
    assert (adoption.claim.num_deaths, adoption.claim.num_bytes, adoption.engine) == (1, 6, "x86")
    assert (adoption.last, adoption.record.checkpoint) == (LogEntry(0, 0, 1, 0, 1), "state-1")
    before = rows()
    assert run(response_table.append_all, [Append(lease, entry(1), 12, "x86")]) == set()
    with pytest.raises(FencedError):
        run(response_table.end, lease, entry(1), b"done", b"[1]", 12)
    with pytest.raises(FencedError):
        run(response_table.set_checkpoint, lease, "state-2")
    assert rows() == before
    run(response_table.end, adoption.claim.lease, entry(1, b"end"), b"done", b"[1]", 12)
    assert [each.events for each in run(event_log.new_entries, ("", "r"), 0)[0]] == [b"x", b"end"]
    assert run(RESPONSES.find, "", "r").response == b"done"


def test_engines_continue_exactly_what_they_have_decoded(run: Callable[..., Any]) -> None:
    """All of it. A log without tokens is exact for each engine."""

    def adopted(engine: str) -> Adoption:
        pass_time(run, LEASE_S + 1)
        (adoption,) = claimed(run, engine)
        return adoption

    lease = run(response_table.insert, running("r"), "a")
    run(response_table.append_all, [Append(lease, LogEntry(0, 0, 1, 0, 0, events=b"opening"), 7)])
    adoption = adopted("arm")
    assert adoption.engine == "arm"
    run(response_table.append_all, [Append(adoption.claim.lease, LogEntry(1, 1, 1, 0, 1, b"d", b"e"), 9, "arm")])
    assert adopted("arm").engine == "arm"
    adoption = adopted("x86")
    assert adoption.engine is None
    run(response_table.append_all, [Append(adoption.claim.lease, LogEntry(2, 2, 1, 1, 1, b"d", b"e"), 11)])
    assert [adopted(engine).engine for engine in ("arm", "x86")] == [None, None], "it never becomes exact again"


def test_a_repeated_write_changes_nothing(run: Callable[..., Any]) -> None:
    """A write is repeated if the database goes away between its commit and the news of it."""
    lease = run(response_table.insert, running("r"), "a")
    assert run(response_table.insert, running("r"), "a") == lease
    for _ in range(2):
        run(response_table.append_all, [Append(lease, entry(0), 6)])
    assert [each.number for each in run(event_log.new_entries, ("", "r"), 0)[0]] == [0]


def test_tenants_are_apart(run: Callable[..., Any]) -> None:
    run(response_table.insert, running("r", "mine"), "a")
    assert run(RUNNING.seize, "b", "other", "r") is None
    run(response_table.delete, "other", "r")
    assert run(RESPONSES.find, "mine", "r") is not None
    run(response_table.insert, running("r", "my"), "a", entry(0))
    assert run(event_log.new_entries, ("mine", "r"), 0)[0] == []
    assert run(event_log.new_entries, ("other", "r"), 0) == ([], False)


def test_a_stream_is_followed_from_any_event(run: Callable[..., Any]) -> None:
    lease = run(response_table.insert, running("r"), "a")
    assert run(event_log.last_entry, ("", "r")) == BEFORE_FIRST
    assert run(event_log.entry_of, ("", "r"), 0) == 0
    for each, size in (
        (LogEntry(0, 0, 2, 0, 0, b"", b"ab"), 2),
        (LogEntry(1, 2, 0, 0, 3, b"held back", b""), 11),
        (LogEntry(2, 2, 1, 3, 1, b"delta", b"c"), 17),
    ):
        run(response_table.append_all, [Append(lease, each, size)])
    assert [run(event_log.entry_of, ("", "r"), n) for n in range(5)] == [0, 0, 2, 3, 3]
    assert run(event_log.last_entry, ("", "r")) == LogEntry(2, 2, 1, 3, 1)
    texts = [b"".join(each.events for each in run(event_log.new_entries, ("", "r"), n)[0]) for n in range(4)]
    assert texts == [b"abc", b"c", b"c", b""]
    assert run(event_log.new_entries, ("", "r"), 3) == ([], True)
    run(response_table.end, lease, LogEntry(3, 3, 1, 4, 0, b"", b"d"), b"done", b"[]", 18)
    entries, is_running = run(event_log.new_entries, ("", "r"), 2)
    assert (b"".join(each.events for each in entries), is_running) == (b"cd", False)


def test_bytes_of_a_log_are_counted_by_its_appends(run: Callable[..., Any]) -> None:
    lease = run(response_table.insert, running("r"), "first")
    run(response_table.append_all, [Append(lease, LogEntry(0, 0, 1, 0, 1, b"de", b"event"), 7)])
    own = len(b"pending") + len(b"[]") * 2 + len(b"{}") + 4
    assert run(response_table.running_of, "") == (1, own + 7)
    assert run(response_table.running_of, "other") == (0, 0)
    pass_time(run, LEASE_S + 1)
    (adoption,) = claimed(run)
    assert adoption.claim.num_bytes == 7
    run(response_table.end, adoption.claim.lease, LogEntry(1, 1, 1, 1, 0, b"", b"end"), b"done", b"[1]", 10)
    assert run(Transaction.rows, "SELECT num_bytes FROM roost_responses") == [(len(b"done[]") + len(b"[1]") + 10,)]
    assert run(response_table.running_of, "") == (0, 0)


def test_the_log_of_what_is_no_stream_goes_with_its_end(run: Callable[..., Any]) -> None:
    lease = run(response_table.insert, running("r", is_streamed=False), "first")
    run(response_table.append_all, [Append(lease, LogEntry(0, 0, 1, 0, 1, b"delta", b""), 5)])
    run(response_table.end, lease, LogEntry(1, 1, 1, 1, 0), b"done", b"[1]", 5)
    assert run(event_log.new_entries, ("", "r"), 0)[0] == []
    assert run(Transaction.rows, "SELECT num_bytes FROM roost_responses") == [(9,)]


def test_the_oldest_of_a_tenant_expire(run: Callable[..., Any]) -> None:
    names = [f"r{number}" for number in range(6)]
    for name in names:
        run(response_table.put, ResponseRecord("much", name, bytes(1000), b"", b""))
        pass_time(run, 10.0)
    run(response_table.put, ResponseRecord("little", "x", bytes(1000), b"", b""))
    run(response_table.insert, running("r9", "much"), "a")

    def expire(max_age_s: float, *bounds: int) -> list[str]:
        found = run(response_table.expired, Bounds(*bounds), max_age_s)
        for name in found:
            run(response_table.delete, *name)
        return [response_id for _, response_id in found]

    assert expire(1e9, 5, 10**9) == ["r0"]
    assert expire(1e9, 5, 3500) == ["r1", "r2"]
    assert expire(25.0, 5, 10**9) == ["r3"]
    assert [name for name in names if run(RESPONSES.find, "much", name) is not None] == ["r4", "r5"]
    assert run(RESPONSES.find, "little", "x") is not None
    assert run(RESPONSES.find, "much", "r9") is not None, "it is still running"
    assert run(response_table.count_running) == (1, 0)


def test_what_nobody_adopts_is_counted_and_expires(run: Callable[..., Any]) -> None:
    leases = [run(response_table.insert, running(f"r{number}"), "a") for number in range(3)]
    run(RUNNING.release, leases[:1])
    assert run(response_table.count_running) == (3, 1)
    pass_time(run, 70.0)
    run(response_table.append_all, [Append(leases[2], entry(0), 6)])
    assert run(response_table.count_running) == (3, 2)
    assert run(response_table.expired, Bounds(5, 10**9), 69.0) == [("", "r0")]
    run(response_table.delete, "", "r0")
    assert run(RESPONSES.find, "", "r0") is None
    assert run(response_table.count_running) == (2, 1)


PARTS = {
    StoredPart("history", f"resp_{0:032}"),
    StoredPart("output", f"resp_{1:032}"),
    StoredPart("conversation", f"conv_{0:032}"),
    StoredPart("item", f"msg_{0:032}"),
}

LEASE = Lease("t1", "r1681", 1, 1)
ENDED = Turn("r41", LEASE._replace(number=TURN), [Item("new", b"{}")])

STATEMENTS: dict[str, tuple[Callable[[Transaction], Any], set[str]]] = {
    "claim": (lambda e: response_table.claim(e, Claimant("b", "model", "arm", 60.0), Places(8, 8)), set()),
    "append": (lambda e: response_table.append_all(e, [Append(LEASE, entry(1), 9)]), set()),
    "checkpoint": (partial(response_table.set_checkpoint, lease=LEASE, checkpoint="x"), set()),
    "end": (lambda e: response_table.end(e, LEASE, entry(2), b"", b"", 9), set()),
    "delete": (partial(response_table.delete, tenant="t1", response_id="r1721"), set()),
    "running of": (partial(response_table.running_of, tenant="t1"), set()),
    "count running": (response_table.count_running, INDEXES),
    "checkpoint names": (response_table.checkpoint_names, INDEXES),
    "expired": (partial(response_table.expired, max_age_s=900.0, bounds=Bounds(35, 10**9)), INDEXES),
    "expired conversations": (
        partial(CONVERSATIONS.expired, bounds=Bounds(1, 10**9), max_age_s=900.0),
        set(),
    ),
    "take": (partial(conversations.take_turn, tenant="t1", conversation="r1", response="r", owner="b"), set()),
    "end a turn": (lambda e: run_each(e, [partial(conversations.end_turn, turn=ENDED)]), set()),
    "sizes of what bodies name": (partial(expansion.found_parts, tenant="t1", parts=PARTS, are_sizes=True), set()),
    "contents of what bodies name": (partial(expansion.found_parts, tenant="t1", parts=PARTS, are_sizes=False), set()),
    **{
        f"list {spec}": (partial(conversations.list_items, tenant="t1", conversation="r1", spec=spec), set())
        for spec in (PageSpec(2), PageSpec(2, "i", newest_first=True))
    },
    "delete an item": (partial(conversations.delete_item, tenant="t1", conversation="r1", item_id="i"), set()),
    "hide a conversation": (partial(CONVERSATIONS.hide, tenant="t1", id="r1"), set()),
    "remove hidden conversations": (CONVERSATIONS.remove_hidden, set()),
    "new entries": (partial(event_log.new_entries, name=("t1", "r1681"), place=0), set()),
    "kept events": (partial(event_log.kept_events, name=("t1", "r1681")), set()),
    "entry of an event": (partial(event_log.entry_of, name=("t1", "r1681"), event=1), set()),
    "make room": (
        partial(response_table.make_room, tenant="t1", bounds=Bounds(), tables=response_table.BOUNDED),
        set(),
    ),
}
"""Statements, and the indexes of running responses that they may read from end to end."""


def fill(transaction: Transaction) -> None:
    """Stores 2,000 responses of 40 tenants, of which the last 400 run, and have lost their owner."""
    transaction.execute(
        """
        INSERT INTO roost_responses (tenant, id, created, response, history, output, num_bytes, is_background,
            is_streamed, is_running, request, prompt)
        WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 2000)
        SELECT 't' || (number - number / 40 * 40), 'r' || number, number, ?, ?, ?, 2000, 1, 1,
            CASE WHEN number > 1600 THEN 1 ELSE 0 END, ?, ? FROM numbers
        """,
        *(bytes(500),) * 5,
    )
    transaction.execute(
        f"""
        INSERT INTO {RUNNING.name} (tenant, id, number, fence, model, engine, owner, lease_until)
        SELECT tenant, id, 1, 1, 'model', 'x86', 'owner', created - 1600 FROM roost_responses WHERE is_running = 1
        """
    )
    turns = f"INSERT INTO {RUNNING.name}_turns SELECT id, 0, 1 FROM roost_responses"
    transaction.execute(turns)
    transaction.execute(
        """
        INSERT INTO roost_events (tenant, id, number, first_event, num_events, first_token, num_tokens, delta, events)
        SELECT tenant, id, 0, 0, 1, 0, 1, response, response FROM roost_responses
        """
    )
    transaction.execute(
        """
        INSERT INTO roost_conversations (tenant, id, created, updated, metadata, num_items, num_bytes, holder)
        SELECT tenant, id, 0, created, output, 1, 2000, 'r0' FROM roost_responses
        """
    )
    transaction.execute(
        """
        INSERT INTO roost_conversation_items (tenant, conversation, id, position, text)
        SELECT tenant, id, 'i', 0, output FROM roost_responses
        """
    )
    transaction.execute("ANALYZE")


def test_no_statement_scans_responses(database: Database) -> None:
    database.run_now(fill, writes=True)
    for name, (work, allowed) in STATEMENTS.items():
        assert scans_of(database, work) - {"test_clock"} <= allowed, name
