"""Servers that start while PostgreSQL is away or refuses to make tables, and those whose file cannot be opened."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import FaultyDatabase, PostgresqlServer, opened, postgresql_server
from server_process import SIMULATED, ServerProcess, respond, serving, start, until


@pytest.fixture(scope="module")
def database_server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL that is not shared: tests stop it."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def empty(database_server: PostgresqlServer) -> Iterator[FaultyDatabase]:
    """A database without tables, whose user may not make any."""
    database = FaultyDatabase(database_server)
    database.administer("CREATE DATABASE faulty", "postgres")
    database.administer("CREATE ROLE clerk LOGIN PASSWORD 'sesame'", "postgres")
    database.administer("REVOKE CREATE ON SCHEMA public FROM public")
    yield database
    database.administer("DROP DATABASE faulty WITH (FORCE)", "postgres")
    database.administer("DROP ROLE clerk", "postgres")


def ready(server: ServerProcess) -> tuple[int, Any]:
    response = httpx.get(f"{server.url}/health/ready", timeout=60)
    return response.status_code, response.json()


def available(server: ServerProcess) -> set[str]:
    page = httpx.get(f"{server.url}/metrics", timeout=60).text
    return {line for line in page.splitlines() if line.startswith("roost_store_available")}


def test_a_server_starts_without_its_database_and_connects_later(
    tiny_config: Path, database_server: PostgresqlServer
) -> None:
    database_server.stop()
    with serving(f"random:{tiny_config}", *SIMULATED, ROOST_STORE=database_server.url) as server:
        status, body = ready(server)
        assert (status, body["status"]) == (200, "degraded")
        assert {"responses", "batches"} <= set(body["store_unavailable"])
        assert 'roost_store_available{feature="responses"} 0.0' in available(server)
        assert respond(server, store=False).status_code == 200
        refused = respond(server)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        (line,) = [line for line in server.log.read_text().splitlines() if "serving without it" in line]
        assert "sesame" not in line
        database_server.start()
        until(lambda: ready(server) == (200, {"status": "ready"}))
        assert 'roost_store_available{feature="responses"} 1.0' in available(server)
        stored = respond(server)
        assert stored.status_code == 200
        assert httpx.get(f"{server.url}/v1/responses/{stored.json()['id']}", timeout=60).status_code == 200
        assert "the store's database can be used again" in server.log.read_text()


def refusal(tiny_config: Path, **environment: Any) -> str:
    """Returns what a server that does not start writes."""
    process = start("serve", f"random:{tiny_config}", *SIMULATED, "--port", "0", **environment)
    _, written = process.communicate(timeout=120)
    assert process.returncode == 1, written
    return written


@pytest.mark.parametrize("missing", ["CREATE", "USAGE"])
def test_a_role_without_a_privilege_is_a_line_that_names_it(
    tiny_config: Path, empty: FaultyDatabase, missing: str
) -> None:
    if missing == "USAGE":
        empty.administer("REVOKE ALL ON SCHEMA public FROM public")
    written = refusal(tiny_config, ROOST_STORE=empty.url)
    last = written.splitlines()[-1]
    assert last.startswith("roost: --store postgresql://clerk:***@127.0.0.1:")
    assert "the database's role may not make or change the tables of responses (" in last
    assert last.endswith("it needs USAGE and CREATE on the schema, and must own the tables that are there")
    assert "Traceback" not in written
    assert "LINE 1" not in written


def test_a_role_that_may_make_no_tables_uses_those_that_are_there(tiny_config: Path, empty: FaultyDatabase) -> None:
    opened(empty.url.replace("clerk", "roost")).close()
    empty.administer("GRANT USAGE ON SCHEMA public TO clerk")
    empty.administer("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO clerk")
    with serving(f"random:{tiny_config}", *SIMULATED, ROOST_STORE=empty.url) as server:
        assert ready(server) == (200, {"status": "ready"})
        assert respond(server).status_code == 200


def test_a_file_that_cannot_be_opened_is_a_line(tiny_config: Path) -> None:
    written = refusal(tiny_config, ROOST_STORE="sqlite:////proc/no/store.db")
    assert written.splitlines()[-1] == (
        "roost: --store sqlite:///proc/no/store.db: the store's file cannot be used: unable to open database file"
    )
    assert "Traceback" not in written
