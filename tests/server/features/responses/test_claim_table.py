"""Turns of tenants, deaths of owners, and plans of the statements with which replicas adopt responses."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from databases import opened
from query_plans import scans_of
from roost.server.database.database import Database, Transaction
from roost.server.features.responses import (
    claim_table,
    conversation_table,
    event_table,
    expiry_table,
    part_table,
    response_table,
)
from roost.server.features.responses.conversation_table import CONVERSATIONS, Item, Turn
from roost.server.features.responses.expiry_table import RowLimits
from roost.server.features.responses.part_table import StoredPart
from roost.server.features.responses.records import Claim, Deaths, Job, Lease, LogEntry, ResponseRecord
from roost.server.features.responses.response_table import LEASE_S
from roost.server.storage.objects import Bounds, PageSpec

RUNNING = {"roost_responses_leases", "roost_responses_owners", "roost_responses_running"}
"""Indexes of running responses."""

JOB = Job("model", b"{}", b"\1\0\0\0", "x86")


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = opened(address, clocked=True)
    yield database
    database.close()


def written[T](database: Database, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
    return database.run_now(lambda each: work(each, *arguments, **named), writes=True)


def begun(database: Database, tenant: str, name: str) -> Lease:
    record = ResponseRecord(tenant, name, b"pending", b"[]", b"[]", True, True, True)
    return written(database, response_table.insert, record, JOB, "first")


def claimed(database: Database, limit: int = 8, after: str = "") -> list[Claim]:
    return written(database, claim_table.claim, "next", "model", limit, after=after)


def pass_time(database: Database, seconds: float) -> None:
    written(database, lambda each: each.execute("UPDATE test_clock SET now = now + ?", seconds))


def dies(database: Database) -> None:
    """Ends all leases, as if their owners had died."""
    pass_time(database, LEASE_S + 1)


def names(claims: list[Claim]) -> list[str]:
    return [f"{each.lease.tenant}/{each.lease.id}" for each in claims]


def test_tenants_take_turns(database: Database) -> None:
    """One of them has responses without an owner by the hundred, which are older than all others."""
    for number in range(300):
        begun(database, "greedy", f"r{number:03}")
    for tenant in ("amy", "zoe"):
        for number in range(2):
            begun(database, tenant, f"r{number}")
    leases = written(database, response_table.renew, "first", [])
    written(database, response_table.release, leases)
    first = claimed(database, 3)
    assert sorted(each.lease.tenant for each in first) == ["amy", "greedy", "zoe"]
    second = claimed(database, 8, after=first[-1].lease.tenant)
    assert sorted(each.lease.tenant for each in second) == ["amy", *["greedy"] * 6, "zoe"]
    turns = []
    for number in range(4):
        begun(database, "amy", f"more{number}")
        dies(database)
        turns += claimed(database, 1, after=turns[-1].lease.tenant if turns else "")
    assert [each.lease.tenant for each in turns] == ["amy", "greedy", "zoe", "amy"]


def test_those_that_wait_longest_come_first(database: Database) -> None:
    for name in ("c", "a", "b"):
        written(database, response_table.release, [begun(database, "", name)])
        pass_time(database, 1.0)
    assert names(claimed(database)) == ["/c", "/a", "/b"]


def test_only_deaths_count(database: Database) -> None:
    """A response that is given back is none the worse for it, however often; neither is one that makes no progress."""
    lease = begun(database, "", "r")
    for _ in range(20):
        written(database, response_table.release, [lease])
        (claim,) = claimed(database)
        assert claim.deaths == Deaths()
        lease = claim.lease
    seized = written(database, claim_table.seize, "other", "", "r")
    assert seized is not None
    assert seized.deaths == Deaths()


def test_progress_does_not_undo_deaths(database: Database) -> None:
    """A response that gets one token after each adoption is not adopted for ever."""
    lease, counts = begun(database, "", "r"), []
    for number in range(5):
        dies(database)
        (claim,) = claimed(database)
        counts.append((claim.deaths.num_deaths, claim.deaths.num_alone, claim.deaths.is_suspect))
        lease = claim.lease
        if claim.deaths.is_suspect:
            written(database, claim_table.set_alone, lease, is_alone=True)
        entry = LogEntry(number, number, 1, number, 1, b"d", b"e")
        assert written(database, response_table.append_all, [(lease, entry, 2)]) == {lease}
    assert counts == [(1, 0, False), (2, 0, True), (3, 1, True), (4, 2, True), (5, 3, True)]
    assert claim.deaths.is_guilty


def test_a_death_counts_against_a_response_only_if_it_ran_alone(database: Database) -> None:
    """An innocent response shares its owners with one that ends them, before it is known, and then waits."""
    begun(database, "", "innocent")
    for _ in range(10):
        dies(database)
        (claim,) = claimed(database)
        assert claim.deaths.num_alone == 0
    written(database, claim_table.set_alone, claim.lease, is_alone=True)
    written(database, response_table.release, [claim.lease])
    (claim,) = claimed(database)
    assert claim.deaths == Deaths(10, 0), "it was given back"
    dies(database)
    (claim,) = claimed(database)
    assert claim.deaths == Deaths(11, 0), "the next owner has not run it alone yet"


def test_an_engine_that_died_counts_as_a_death_once(database: Database) -> None:
    lease = begun(database, "", "r")
    for _ in range(2):  # as a write is repeated whose end is unknown
        written(database, response_table.release, [lease], is_death=True)
    (claim,) = claimed(database)
    assert claim.deaths == Deaths(1, 0)
    written(database, claim_table.set_alone, claim.lease, is_alone=True)
    for _ in range(2):
        written(database, response_table.release, [claim.lease], is_death=True)
    (claim,) = claimed(database)
    assert claim.deaths == Deaths(2, 1)


def test_a_suspect_is_claimed_alone(database: Database) -> None:
    for tenant, name in (("a", "1"), ("b", "suspect"), ("b", "2"), ("c", "3")):
        begun(database, tenant, name)
        pass_time(database, 1.0)
    written(database, lambda each: each.execute("UPDATE roost_responses SET num_deaths = 1 WHERE id = 'suspect'"))
    dies(database)
    assert names(claimed(database)) == ["a/1"]
    assert names(claimed(database, after="a")) == ["b/suspect"]
    assert sorted(names(claimed(database, after="b"))) == ["b/2", "c/3"]


def test_bytes_of_a_log_are_counted_by_its_appends(database: Database) -> None:
    lease = begun(database, "", "r")
    written(database, response_table.append_all, [(lease, LogEntry(0, 0, 1, 0, 1, b"de", b"event"), 7)])
    own = len(b"pending") + len(b"[]") * 2 + len(JOB.request) + len(JOB.prompt)
    assert database.run_now(lambda each: response_table.running_of(each, "", 9)) == (1, own + 7)
    assert database.run_now(lambda each: response_table.running_of(each, "other", 9)) == (0, 0)
    dies(database)
    (claim,) = claimed(database)
    assert claim.log.num_bytes == 7
    written(database, response_table.end, claim.lease, LogEntry(1, 1, 1, 1, 0, b"", b"end"), b"done", b"[1]", 10)
    size = "SELECT num_bytes FROM roost_responses"
    assert database.run_now(lambda each: each.rows(size)) == [(len(b"done[]") + len(b"[1]") + 10,)]


def test_the_log_of_what_is_no_stream_goes_with_its_end(database: Database) -> None:
    record = ResponseRecord("", "r", b"pending", b"[]", b"[]", is_background=True, is_running=True)
    lease = written(database, response_table.insert, record, JOB, "first")
    written(database, response_table.append_all, [(lease, LogEntry(0, 0, 1, 0, 1, b"delta", b""), 5)])
    written(database, response_table.end, lease, LogEntry(1, 1, 1, 1, 0), b"done", b"[1]", 5)
    assert database.run_now(lambda each: event_table.entries(each, "", "r", 0)) == []
    assert database.run_now(lambda each: each.rows("SELECT num_bytes FROM roost_responses")) == [(9,)]


PARTS = {
    StoredPart("history", f"resp_{0:032}"),
    StoredPart("output", f"resp_{1:032}"),
    StoredPart("conversation", f"conv_{0:032}"),
    StoredPart("item", f"msg_{0:032}"),
}

STATEMENTS: dict[str, tuple[Callable[[Transaction], Any], set[str]]] = {
    "waiting tenants": (claim_table.waiting_tenants, set()),
    "claim": (partial(claim_table.claim, owner="b", model="model", limit=8, engine="arm", after_s=60.0), set()),
    "renew": (partial(response_table.renew, owner="first", leases=()), set()),
    "running of": (partial(response_table.running_of, tenant="t1", limit=1000), set()),
    "count running": (partial(response_table.count_running, patience_s=60.0), RUNNING),
    "checkpoint names": (response_table.checkpoint_names, RUNNING),
    "expired": (partial(expiry_table.expired, max_age_s=900.0, limits=RowLimits(35, 10**9)), set()),
    "expired conversations": (
        partial(CONVERSATIONS.expired, bounds=Bounds(900.0, 1, 10**9)),
        set(),
    ),
    "take": (partial(conversation_table.take, tenant="t1", conversation="r1", response="r"), set()),
    "extend": (partial(conversation_table.renew, turns=[("t1", "r1", "r"), ("t1", "r41", "r")]), set()),
    "end": (partial(conversation_table.end, tenant="t1", turn=Turn("r1", "r", [Item("new", b"{}")])), set()),
    "sizes of what bodies name": (partial(part_table.sizes, tenant="t1", parts=PARTS), set()),
    "contents of what bodies name": (partial(part_table.contents, tenant="t1", parts=PARTS), set()),
    **{
        f"list {spec}": (partial(conversation_table.read_list, tenant="t1", conversation="r1", spec=spec), set())
        for spec in (PageSpec(2), PageSpec(2, "i", newest_first=True))
    },
    "delete an item": (partial(conversation_table.delete_item, tenant="t1", conversation="r1", item_id="i"), set()),
    "hide a conversation": (partial(CONVERSATIONS.hide, tenant="t1", id="r1"), set()),
    "remove hidden conversations": (CONVERSATIONS.remove_hidden, set()),
    "make room": (partial(expiry_table.make_room, tenant="t1", limits=RowLimits()), set()),
}
"""Statements, and the indexes of running responses that they may read from end to end."""


def fill(transaction: Transaction) -> None:
    """Stores 2,000 responses of 40 tenants, of which the last 400 run, and have no owner."""
    transaction.execute(
        """
        INSERT INTO roost_responses (tenant, id, created, response, history, output, num_bytes, is_background,
            is_streamed, is_running, model, request, prompt, owner, engine, exact_fence, fence, lease_until,
            log_bytes)
        WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 2000)
        SELECT 't' || (number - number / 40 * 40), 'r' || number, number, ?, ?, ?, 2000, 1, 1,
            CASE WHEN number > 1600 THEN 1 ELSE 0 END, 'model', ?, ?, 'owner' || (number / 20), 'x86', 1, 1,
            number - 1600, 0
        FROM numbers
        """,
        *(bytes(500),) * 5,
    )
    transaction.execute(
        """
        INSERT INTO roost_events (tenant, id, number, first_event, num_events, first_token, num_tokens, delta, events)
        SELECT tenant, id, 0, 0, 1, 0, 1, response, response FROM roost_responses
        """
    )
    transaction.execute(
        """
        INSERT INTO roost_conversations (tenant, id, created, updated, metadata, num_items, num_bytes, locked_until)
        SELECT tenant, id, 0, created, output, 1, 2000, 0 FROM roost_responses
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
    written(database, fill)
    for name, (work, allowed) in STATEMENTS.items():
        assert scans_of(database, work) - {"test_clock"} <= allowed, name
