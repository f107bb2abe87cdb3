"""Conversations that two replicas share, of which one goes away in the midst of a response."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from databases import opened
from fake_server import until
from roost.server.database.database import Database
from roost.server.database.dialects import LEASE_S
from roost.server.database.group_commit import run_each
from roost.server.errors.request_errors import ApiError
from roost.server.features.responses import conversations, response_table
from roost.server.features.responses.conversations import TURN, ConversationRecord, Item, Turn
from roost.server.features.responses.event_log import LogEntry
from roost.server.features.responses.response_table import Job, ResponseRecord
from roost.server.storage.objects import Bounds, PageSpec
from roost.server.storage.work import Lease
from test_durable_responses import (  # noqa: F401 - `replicas` is a fixture
    LETTERS,
    Replica,
    database_of,
    events_of,
    expire_leases,
    num_tokens_logged,
    num_tokens_streamed,
    replicas,
    streaming,
)

RECORD = ConversationRecord("", "c", 7, b"{}")
ITEMS = [Item("msg_1", b'{"id":"msg_1"}'), Item("msg_2", b'{"id":"msg_2"}')]


async def created(replica: Replica) -> str:
    return str((await replica.client.post("/v1/conversations", json={})).json()["id"])


async def texts(replica: Replica, conversation: str) -> list[str]:
    """Returns the texts of all messages, oldest first."""
    listed = await replica.client.get(f"/v1/conversations/{conversation}/items?order=asc")
    assert listed.status_code == 200, listed.text
    return [item["content"][0]["text"] for item in listed.json()["data"]]


async def respond(replica: Replica, conversation: str, **fields: Any) -> Any:
    body = {"input": "next", "max_output_tokens": 2, "conversation": conversation, **fields}
    return await replica.client.post("/v1/responses", json=body)


def expire_turns(address: str) -> None:
    """Ends the leases of all turns, as if their replica had stopped for long."""
    with database_of(address) as database:
        sql = f"UPDATE roost_running SET lease_until = 0 WHERE number = {TURN}"
        database.run_now(lambda each: each.execute(sql), writes=True)


@pytest.mark.parametrize("num_deaths", [1, 2])
async def test_an_adopted_response_is_added_once(
    replicas: tuple[Replica, Replica],  # noqa: F811
    address: str,
    num_deaths: int,
) -> None:
    first, second = replicas
    conversation = await created(first)
    first.engine.allowed = 4
    made = await first.created(conversation=conversation)
    await num_tokens_logged(first, address, 4)
    await first.dies()
    expire_turns(address)
    assert (await respond(second, conversation)).json()["error"]["code"] == "conversation_locked"
    for place in range(num_deaths):
        adopter, other = (first, second) if place % 2 else (second, first)
        other.engine.allowed, adopter.engine.allowed = 0, 2 if place + 1 < num_deaths else 1000
        expire_leases(address)
        await adopter.adopter.look()
        if place + 1 < num_deaths:
            await num_tokens_logged(adopter, address, 6)
            await adopter.dies()
    await second.ended(made["id"])
    first.engine.allowed = second.engine.allowed = 1000
    for each in replicas:
        assert await texts(each, conversation) == ["hi", LETTERS[:10]]
    assert (await respond(first, conversation)).status_code == 200
    assert await texts(second, conversation) == ["hi", LETTERS[:10], "next", "AB"]


async def test_a_stream_that_goes_on_elsewhere_is_added_there(
    replicas: tuple[Replica, Replica],  # noqa: F811
) -> None:
    first, second = replicas
    conversation = await created(first)
    first.engine.allowed = 4
    reading = streaming(first, conversation=conversation)
    await num_tokens_streamed(first, 4)
    await first.responses.hand_over_streams()
    await first.engine.stop()
    first.engine.allowed = 1000
    last = events_of((await reading).text)[-1]
    assert last["code"] == "stream_moved"
    assert (await respond(second, conversation)).json()["error"]["code"] == "conversation_locked"
    await second.adopter.look()
    await second.ended(last["response_id"])
    assert await texts(second, conversation) == ["hi", LETTERS[:10]]


async def test_a_turn_lasts_as_long_as_its_replica_extends_it(
    replicas: tuple[Replica, Replica],  # noqa: F811
    address: str,
) -> None:
    first, second = replicas
    conversation = await created(first)
    first.engine.allowed = 1
    running = asyncio.create_task(respond(first, conversation, input="hi"))
    await until(lambda: first.engine.running)
    with database_of(address) as database:
        soon = "UPDATE roost_running SET lease_until = {now} + 5"
        database.run_now(lambda each: each.execute(soon), writes=True)
        await first.adopter.look()
        left = "SELECT lease_until - {now} FROM roost_running"
        assert database.run_now(lambda each: each.rows(left))[0][0] > 5
    assert (await respond(second, conversation)).json()["error"]["code"] == "conversation_locked"
    first.engine.allowed = 1000
    assert (await running).status_code == 200
    assert (await respond(second, conversation)).status_code == 200
    assert await texts(first, conversation) == ["hi", "AB", "next", "AB"]


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"store": False}])
async def test_a_response_that_has_lost_its_turn_adds_nothing(
    replicas: tuple[Replica, Replica],  # noqa: F811
    address: str,
    fields: dict[str, Any],
) -> None:
    """Its replica was frozen for longer than the lease of its turn."""
    first, second = replicas
    conversation = await created(first)
    first.engine.allowed = 1
    running = asyncio.create_task(respond(first, conversation, input="hi", **fields))
    await until(lambda: first.engine.running)
    expire_turns(address)
    assert (await respond(second, conversation)).status_code == 200
    await first.adopter.look()
    first.engine.allowed = 1000
    lost = await running
    error = events_of(lost.text)[-1]["response"]["error"] if "stream" in fields else lost.json()["error"]
    assert "another response is running" in error["message"]
    assert await texts(first, conversation) == ["next", "AB"]


# --- statements


@pytest.fixture
def database(address: str) -> Any:
    database = opened(address, clocked=True)
    yield database
    database.close()


def written(database: Database, work: Any, *arguments: Any) -> Any:
    return database.run_now(lambda each: work(each, *arguments), writes=True)


def texts_of(database: Database) -> list[bytes]:
    """Returns the JSON of the conversation's items, oldest first."""
    page = written(database, conversations.list_items, "", "c", PageSpec(100))
    return [item.text for item in page.items]


def taken(database: Database, response: str, owner: str = "replica") -> Lease:
    return written(database, conversations.take_turn, "", "c", response, owner)


def is_locked(database: Database, work: Callable[..., Any], *arguments: Any) -> bool:
    """Returns whether a write of a committed transaction is refused, since another response has the turn."""
    (error,) = written(database, run_each, [lambda each: work(each, *arguments)])
    return isinstance(error, ApiError) and error.body["error"]["code"] == "conversation_locked"


def test_an_end_that_is_repeated_adds_nothing_more(database: Database) -> None:
    """As after a commit whose answer was lost."""
    written(database, conversations.insert_conversation, RECORD, ITEMS[:1])
    written(database, conversations.insert_conversation, RECORD, ITEMS[:1])
    lease = taken(database, "r1")
    assert is_locked(database, conversations.take_turn, "", "c", "r2", "another")
    for _ in range(2):
        assert written(database, conversations.end_turn, Turn("c", lease, ITEMS[1:])) is None
    assert texts_of(database) == [item.text for item in ITEMS]
    sizes = "SELECT num_items, num_bytes FROM roost_conversations"
    assert written(database, lambda each: each.rows(sizes)) == [(2, sum(len(item.text) for item in ITEMS))]
    assert taken(database, "r2")


def test_a_replica_that_was_stopped_past_its_lease_adds_nothing(database: Database) -> None:
    """As after SIGSTOP, once another response has had the conversation, even one that has ended again."""

    def rows() -> list[Any]:
        others = "roost_running WHERE owner <> 'stopped'"  # its own turn may end
        tables = ("roost_conversations", "roost_conversation_items", others, "roost_responses")
        return [written(database, lambda each, name=name: each.rows(f"SELECT * FROM {name}")) for name in tables]

    written(database, conversations.insert_conversation, RECORD, [])
    stopped = Turn("c", taken(database, "r1", "stopped"), ITEMS[:1])
    written(database, lambda each: each.execute("UPDATE test_clock SET now = now + ?", LEASE_S - 1))
    assert is_locked(database, conversations.take_turn, "", "c", "r2", "another")
    written(database, lambda each: each.execute("UPDATE test_clock SET now = now + 2"))
    ended = Turn("c", taken(database, "r2"), ITEMS[1:])
    late = ResponseRecord("", "r1", b"late", b"[]", b"[]")
    for _ in range(2):
        before = rows()
        assert is_locked(database, response_table.put, late, stopped)
        assert is_locked(database, conversations.end_turn, stopped)
        assert rows() == before
        assert written(database, conversations.end_turn, ended) is None
    assert texts_of(database) == [ITEMS[1].text]


def test_a_line_that_runs_again_takes_its_own_turn(database: Database) -> None:
    """Its former replica adds nothing any more."""
    written(database, conversations.insert_conversation, RECORD, [])
    former, lease = taken(database, "r1", "former"), taken(database, "r1", "next")
    assert is_locked(database, conversations.end_turn, Turn("c", former, ITEMS[:1]))
    assert is_locked(database, conversations.take_turn, "", "c", "r2", "another")
    assert written(database, conversations.end_turn, Turn("c", lease, ITEMS[:1])) is None
    again = taken(database, "r1", "third")
    assert written(database, conversations.end_turn, Turn("c", again, ITEMS[:1])) is None
    assert texts_of(database) == [ITEMS[0].text]


def test_a_running_response_locks_its_conversation(database: Database) -> None:
    """For any time, on whichever replica it runs."""
    written(database, conversations.insert_conversation, RECORD, [])
    items = conversations.pack_items(ITEMS[:1])
    record = ResponseRecord(
        "", "r1", b"pending", b"[]", b"[]", True, True, True, b"{}", b"\1\0\0\0", conversation="c", input_items=items
    )
    job = Job(record, "model", "x86", Turn("c", taken(database, "r1")))
    lease = written(database, response_table.insert, job, "owner")
    assert written(database, lambda each: each.rows("SELECT number FROM roost_running")) == [(1,)]
    assert written(database, response_table.count_running)[0] == 1
    written(database, lambda each: each.execute("UPDATE test_clock SET now = now + ?", 2 * LEASE_S))
    assert is_locked(database, conversations.take_turn, "", "c", "r2", "another")
    end = LogEntry(0, 0, 1, 0, 1, b"", b"")
    written(database, response_table.end, lease, end, b"done", b"[]", 0, ITEMS[1:])
    assert texts_of(database) == [item.text for item in ITEMS]
    assert written(database, lambda each: each.rows("SELECT input_items FROM roost_responses")) == [(None,)]
    assert written(database, response_table.count_running) == (0, 0)
    taken(database, "r2")
    assert written(database, response_table.count_running) == (0, 0), "a turn is no background response"


def test_conversations_beyond_the_bounds_are_deleted(database: Database) -> None:
    for tenant, names in (("a", "123"), ("b", "4")):
        for name in names:
            record = replace(RECORD, tenant=tenant, id=name)
            written(database, conversations.insert_conversation, record, [Item(f"msg_{name}", bytes(10))])
            written(database, lambda each: each.execute("UPDATE test_clock SET now = now + 10"))
    written(database, conversations.take_turn, "a", "1", "r", "owner")

    def found(max_age_s: float, count: int, size: int) -> list[tuple[str, str]]:
        return list(written(database, conversations.CONVERSATIONS.expired, Bounds(count, size), max_age_s))

    assert found(1e6, 3, 1000) == []
    assert found(1e6, 2, 1000) == [("a", "2")], "the first was just taken"
    assert found(1e6, 3, 15) == [("a", "2"), ("a", "3")]
    assert found(15.0, 3, 1000) == [("a", "2"), ("a", "3")]
    written(database, lambda each: each.execute("UPDATE test_clock SET now = now + ?", LEASE_S))
    assert sorted(found(1.0, 3, 1000)) == [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")]


async def test_a_replica_deletes_old_conversations(
    replicas: tuple[Replica, Replica],  # noqa: F811
    address: str,
) -> None:
    first, _ = replicas
    conversation = await created(first)
    await first.responses.expire()
    assert await texts(first, conversation) == []
    with database_of(address) as database:
        old = "UPDATE roost_conversations SET updated = {now} - 2000"
        database.run_now(lambda each: each.execute(old), writes=True)
    await first.responses.expire()
    assert (await first.client.get(f"/v1/conversations/{conversation}")).status_code == 404
