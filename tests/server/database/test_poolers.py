"""PostgreSQL of several hosts, behind a pooler, and with a standby that commits wait for."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from databases import PostgresqlServer, faulty_database, opened
from failover import POOLER, pooled, query, wait_for_standbys
from fake_server import until
from ports import free_port
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Lane, Transaction, dialect_of
from roost.server.database.dialects import STATEMENT_TIMEOUT_S
from roost.server.database.errors import StoreUnavailableError


def store(transaction: Transaction) -> None:
    transaction.execute("INSERT INTO test_clock VALUES (1)")


def num_stored(database: Database) -> int:
    ((count,),) = database.run_now(lambda each: each.rows("SELECT count(*) FROM test_clock WHERE now = 1"))
    return int(count)


@pytest.fixture
def several(postgresql: PostgresqlServer) -> Iterator[Database]:
    """A database of two hosts, of which the first is away, and of a schema of its own."""
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{postgresql.port}"
    options = "target_session_attrs=read-write&options=-csearch_path%3Dstore"
    url = f"postgresql://roost:sesame@{hosts}/postgres?{options}"
    database = Database(dialect_of(StoreAddress.parse(url)))
    yield database
    database.close()


def test_a_host_that_is_away_is_passed_over(several: Database) -> None:
    """Parameters of the URL hold, and so do the limits of transactions."""
    names = "search_path", "statement_timeout", "idle_in_transaction_session_timeout"
    for writes in (False, True):
        shown = several.run_now(lambda each: [each.rows(f"SHOW {name}")[0][0] for name in names], writes=writes)
        assert shown == ["store", "5s", "5s"]


def test_a_server_that_has_vanished_is_noticed(postgresql: PostgresqlServer) -> None:
    connection = dialect_of(StoreAddress.parse(postgresql.url)).connect()
    with socket.socket(fileno=os.dup(connection.fileno())) as probed:
        seconds = [probed.getsockopt(socket.IPPROTO_TCP, each) for each in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
    connection.close()
    assert seconds == [STATEMENT_TIMEOUT_S] * 2


@pytest.mark.skipif(POOLER is None, reason="PgBouncer is not installed")
def test_a_pooler_may_change_the_session(postgresql: PostgresqlServer) -> None:
    with pooled(postgresql) as port:
        database = opened(postgresql.url.replace(str(postgresql.port), str(port)))
        for _ in range(20):
            database.run_now(store, writes=True)
        assert num_stored(database) == 20
        assert database.run_now(lambda each: each.rows("SHOW statement_timeout")) == [("5s",)]
        database.close()


@pytest.mark.skipif(POOLER is None, reason="PgBouncer is not installed")
def test_the_primary_is_found_whatever_a_pooler_says(postgresql: PostgresqlServer) -> None:
    """PgBouncer repeats to each client what the server has said first."""
    with faulty_database(postgresql) as faulty, pooled(postgresql) as port:
        faulty.administer("ALTER ROLE roost SET default_transaction_read_only = on")
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{port}"
        url = f"postgresql://roost:sesame@{hosts}/faulty?target_session_attrs=read-write"
        database = Database(dialect_of(StoreAddress.parse(url)))
        try:
            with pytest.raises(StoreUnavailableError, match="is read-only"):
                database.run_now(store, writes=True)
        finally:
            faulty.administer("ALTER ROLE roost RESET default_transaction_read_only")
        faulty.end_sessions()
        database.run_now(store, writes=True)
        assert num_stored(database) == 1
        database.close()


@pytest.fixture
async def unfollowed(postgresql: PostgresqlServer) -> AsyncIterator[Database]:
    """A database whose commits wait for a standby that is away."""
    database = opened(postgresql.url)
    wait_for_standbys(postgresql, "absent")
    yield database
    wait_for_standbys(postgresql, "")
    await until(lambda: not database.is_stuck)
    database.close()


async def test_a_commit_that_waits_for_a_standby_is_not_interrupted(
    unfollowed: Database, postgresql: PostgresqlServer
) -> None:
    """PostgreSQL would end the wait, and show what no standby has."""
    writing = asyncio.create_task(unfollowed.run(store, lane=Lane.COMMITS, timeout_s=60.0))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    await until(lambda: query(postgresql, waiting))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await until(lambda: not any(each.name == "store-interrupt" for each in threading.enumerate()))
    assert num_stored(unfollowed) == 0
    wait_for_standbys(postgresql, "")
    await until(lambda: not unfollowed.is_stuck)
    assert num_stored(unfollowed) == 1
