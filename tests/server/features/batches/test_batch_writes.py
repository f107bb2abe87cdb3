"""Writes of files and results: how much of each tenant is in a transaction."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from batch_rows import claimed, make_batch, runner
from databases import opened
from roost.server.database.database import Database
from roost.server.database.group_commit import WriteLoad
from roost.server.features.batches import batch_table, file_table
from roost.server.features.batches.batch_lines import LineResult
from roost.server.features.batches.batch_store import BatchStore
from roost.server.storage import objects
from roost.server.storage.work import Lease
from roost.server.tenants import tenant

MIB = 2**20


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address, clocked=True)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> BatchStore:
    return BatchStore(database, 1e6)


def noted(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, note: Callable[..., Any]) -> list[Any]:
    """Returns what a function notes of the arguments of each call of another one."""
    notes, work = list[Any](), getattr(room, name)

    def run(*args: Any, **options: Any) -> Any:
        notes.append(note(*args, **options))
        return work(*args, **options)

    monkeypatch.setattr(room, name, run)
    return notes


async def test_an_upload_is_written_in_shares(
    database: Database, store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = noted(monkeypatch, file_table, "add_lines", lambda _, __, ___, first, lines, ____: (first, len(lines)))
    tenant.set("a")
    file_id = await store.begin_file("many.jsonl")
    lines = [b"%d\n" % number for number in range(5000)]
    await store.add_lines(file_id, 1, lines, sum(map(len, lines)))
    assert written == [(1, 2048), (2049, 2048), (4097, 904)]
    record = await store.finish_file(file_id, "/v1/completions")
    assert b"".join([piece async for piece in store.content(record)]) == b"".join(lines)


def bytes_of(results: Mapping[Lease, LineResult]) -> Counter[str]:
    """Returns the bytes of each tenant's results."""
    sizes = Counter[str]()
    for lease, result in results.items():
        sizes[lease.tenant] += len(result.line)
    return sizes


async def test_results_are_written_by_tenant_and_in_shares(
    database: Database, store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = noted(monkeypatch, batch_table, "end", lambda _, results: bytes_of(results))
    run = runner(database)
    for owner in ("a", "b"):
        database.run_now(lambda each, owner=owner: make_batch(each, f"batch_{owner}", 5, owner), writes=True)
    claims = claimed(run, store.leases.owner, 10)
    assert len(claims) == 10
    sizes = {"a": MIB // 2, "b": 100}

    async def end(results: Mapping[Lease, LineResult]) -> Counter[bool]:
        return Counter(await asyncio.gather(*(store.end(*each) for each in results.items())))

    results = {each.lease: LineResult(bytes(sizes[each.lease.tenant]), is_failed=False) for each in claims}
    assert await end(results) == {True: 10}
    assert sorted(each["a"] for each in written) == [MIB // 2, MIB, MIB]
    assert sum(each["b"] for each in written) == 500
    assert max(map(len, written)) == 2, "tenants share a transaction"
    assert run(batch_table.totals).batches == {"completed": 2}
    assert await end(results) == {False: 10}, "they were stored"


async def test_lines_are_deleted_by_number_and_by_bytes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(database)
    run(make_batch, name="small", num_lines=25)
    for limit, num_calls in ((10, 3), (25, 1), (100, 1)):
        run(make_batch, name=f"x{limit}", num_lines=25)
        calls = 0
        monkeypatch.setattr(objects, "MAX_REMOVED", limit)
        while run(file_table.FILES.remove_object, tenant="", id=f"in-x{limit}"):
            calls += 1
        assert calls + 1 == num_calls
    monkeypatch.setattr(objects, "MAX_COMMIT", WriteLoad(1, 10))
    calls = 1
    while run(file_table.FILES.remove_object, tenant="", id="in-small"):
        calls += 1
    assert calls == 6, "up to five lines of two bytes, or four of three"
