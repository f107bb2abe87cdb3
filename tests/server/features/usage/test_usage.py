"""Usage of tenants by day: what is counted, what replicas add to one row, and who may read it."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with
from roost.engine import EngineStoppedError, Request, SamplingParams, TokenOutput
from roost.server.app import create_app
from roost.server.database.database import Database, Lane, Transaction
from roost.server.database.errors import StoreUnavailableError
from roost.server.features.usage import usage_table
from roost.server.features.usage.open_usage import OpenUsage, UsageCounter
from roost.server.features.usage.usage_table import TenantUsage, UsageAddition, today
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.observability.request_metrics import RequestRecord, RequestTracker

ROOT, ALICE, BOB = ({"authorization": f"Bearer {key}"} for key in ("root", "a", "b"))

ACCESS: dict[str, Any] = {"keys": ApiKeys(["alice:a", "bob:b"]), "admin_keys": ApiKeys(["root"])}


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address)
    yield database
    database.close()


class Clock:
    """A day that a test changes."""

    def __init__(self) -> None:
        self.days = ["2026-11-29"]

    def __call__(self, days_ago: int = 0) -> str:
        return self.days[0] if not days_ago else f"before {days_ago}"


def record_of(
    counter: UsageCounter, name: str = "r", tenant: str = "alice", num_tokens: int = 3, **fields: Any
) -> RequestRecord:
    """Returns the record of a request that has generated tokens, and has not ended."""
    request = Request(name, (1, 2, 3, 4), SamplingParams(), tenant=tenant, **fields)
    record = RequestTracker([counter], lambda: 1.0).track([request])[0]
    record.add(TokenOutput((5,) * num_tokens, started_at=0.5, num_cached=2), num_tokens)
    return record


def end(record: RequestRecord, error: Exception | None = None) -> None:
    """Ends a request, after which nothing changes its usage."""
    record.end(error)
    record.settle()


async def rows(database: Database) -> dict[tuple[str, str], tuple[int, ...]]:
    read = partial(usage_table.read, start="0", end="9", limit=100)
    return {
        (day, tenant): (found.num_requests, found.prompt_tokens, found.cached_tokens, found.completion_tokens)
        for day, tenant, found in await database.run(read)
    }


async def test_replicas_add_to_one_row_per_tenant_and_day(database: Database) -> None:
    clock = Clock()
    replicas = [UsageCounter(database, clock) for _ in range(2)]
    for counter in replicas:
        end(record_of(counter))
        end(record_of(counter, tenant="bob", num_tokens=1))
        await counter.flush(60.0)
        end(record_of(counter))
    clock.days = ["2026-11-30"]
    for counter in replicas:
        end(record_of(counter, num_tokens=7))
        await counter.flush(60.0)
        await counter.flush(60.0)
    assert await rows(database) == {
        ("2026-11-29", "alice"): (4, 16, 8, 12),
        ("2026-11-29", "bob"): (2, 8, 4, 2),
        ("2026-11-30", "alice"): (2, 8, 4, 14),
    }


async def test_choices_of_one_prompt_are_one_request(database: Database) -> None:
    counter = UsageCounter(database, Clock())
    end(record_of(counter, "r-0"))
    end(record_of(counter, "r-1", fork_of="r-0"))
    await counter.flush(60.0)
    assert await rows(database) == {("2026-11-29", "alice"): (1, 4, 2, 6)}


async def test_a_request_without_a_slot_is_not_counted(database: Database) -> None:
    counter = UsageCounter(database, Clock())
    (record,) = RequestTracker([counter], lambda: 1.0).track([Request("r", (1,), SamplingParams(), tenant="alice")])
    end(record)
    await counter.flush(60.0)
    assert await rows(database) == {}


async def test_work_that_another_replica_continues_is_counted_there(database: Database) -> None:
    first, second = UsageCounter(database, Clock()), UsageCounter(database, Clock())
    end(record_of(first), EngineStoppedError("stopped"))
    end(record_of(first, "line", preemptible=True))  # given back
    continued = record_of(second, num_tokens=5)
    continued.num_earlier = 3
    end(continued)
    await first.flush(60.0)
    await second.flush(60.0)
    assert await rows(database) == {("2026-11-29", "alice"): (1, 1, 1, 8)}  # the earlier tokens are read in the prompt


@pytest.mark.parametrize("is_committed", [True, False])
async def test_an_addition_of_unknown_outcome_counts_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    counter, run = UsageCounter(database, Clock()), database.run

    async def fail(work: Callable[[Transaction], Any], **options: Any) -> Any:
        if is_committed:
            await run(work, **options)
        raise StoreUnavailableError("the connection was lost")

    end(record_of(counter))
    monkeypatch.setattr(database, "run", fail)
    with pytest.raises(StoreUnavailableError):
        await counter.flush(60.0)
    monkeypatch.setattr(database, "run", run)
    end(record_of(counter))
    await counter.close()
    assert await rows(database) == {("2026-11-29", "alice"): (2, 8, 4, 6)}


async def test_old_usage_is_deleted(database: Database) -> None:
    for number, day in enumerate(("2025-01-01", "2026-11-29"), 1):
        add = partial(
            usage_table.add, addition=UsageAddition("r", day, number), counts={(day, "alice"): TenantUsage(1)}
        )
        await database.run(add, lane=Lane.COMMITS)
    expire = partial(usage_table.expire, before="2025-10-25", replicas_before="2025-10-25")
    await database.run(expire, lane=Lane.COMMITS)
    assert list(await rows(database)) == [("2026-11-29", "alice")]


# --- over HTTP


@pytest.fixture
def metered(engine: FakeEngine, service: Service, database: Database) -> tuple[Service, OpenUsage]:
    usage = OpenUsage(database)
    service.metrics.requests.observers += usage.observers
    return service, usage


@pytest.fixture
async def client(metered: tuple[Service, OpenUsage]) -> AsyncIterator[httpx.AsyncClient]:
    service, usage = metered
    app = create_app(service, Access(**ACCESS), features_with(service, usage))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        yield client


async def test_the_operator_reads_what_tenants_used(
    client: httpx.AsyncClient, metered: tuple[Service, OpenUsage], engine: FakeEngine
) -> None:
    engine.num_cached = 1
    day = today()
    for headers, body in ((ALICE, {"prompt": "abc", "n": 2}), (ALICE, {"prompt": "abcd"}), (BOB, {"prompt": "a"})):
        response = await client.post("/v1/completions", json={**body, "max_tokens": 5}, headers=headers)
        assert response.status_code == 200
    await metered[1]._counter.flush(60.0)
    answer = (await client.get("/v1/usage", headers=ROOT)).json()
    assert answer["end"] == today()
    found = [{name: row[name] for name in row if name != "date"} for row in answer["data"]]
    alice = {"tenant": "alice", "requests": 2, "cached_tokens": 2, "completion_tokens": 15}
    assert [{**row, "prompt_tokens": 0} for row in found] == [
        {**alice, "prompt_tokens": 0},
        {"tenant": "bob", "requests": 1, "prompt_tokens": 0, "cached_tokens": 1, "completion_tokens": 5},
    ]
    assert found[0]["prompt_tokens"] == 3 + 4 + 2  # each prompt begins with BOS
    past = (await client.get("/v1/usage", params={"start": "2020-01-01", "end": "2020-12-31"}, headers=ROOT)).json()
    assert (past["start"], past["end"], past["data"]) == ("2020-01-01", "2020-12-31", [])
    assert day <= answer["end"]


@pytest.mark.parametrize("headers", [{}, ALICE])
async def test_tenants_cannot_read_usage(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.get("/v1/usage", headers=headers)).status_code == 401


async def test_a_day_has_one_form(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/usage", params={"start": "29.11.2026"}, headers=ROOT)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "start"


async def test_without_a_database_there_is_no_usage(engine: FakeEngine, service: Service) -> None:
    app = create_app(service, Access(**ACCESS))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        response = await client.get("/v1/usage", headers=ROOT)
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "usage needs a database: start the server with --store"


async def test_the_admin_port_serves_usage(
    engine: FakeEngine, service: Service, metered: tuple[Service, OpenUsage]
) -> None:
    app = create_app(service, Access(**ACCESS, admin_port=9000), features_with(service, metered[1]))
    statuses = {}
    for port in (8000, 9000):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://r:{port}") as client:
            statuses[port] = (await client.get("/v1/usage", headers=ROOT)).status_code
    assert statuses == {8000: 404, 9000: 200}
