"""Files and batches as OpenAI's client uses them, with lines run by workers on the fake engine and on SQLite."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic.types
import httpx
import openai
import pytest
from client_types import checked
from databases import opened, upgrade_further
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, features_with, limited, make_service, until
from fastapi import FastAPI
from roost.server.app import create_app
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, open_database, upgrade
from roost.server.errors.request_errors import ApiError
from roost.server.feature import Opening
from roost.server.features.batches import open_batches
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.batch_table import TABLES, LineClaim
from roost.server.features.batches.file_routes import InputCheck, LineSplitter
from roost.server.features.batches.line_worker import _MAX_EXPIRED, LineKind
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.http.auth import Access, ApiKeys
from roost.server.schemas.json_limits import decode_json
from roost.server.settings import load_settings
from roost.server.storage.claims import Places
from roost.server.storage.worker import Worker
from roost.server.text.served_model import ServedModel
from small_disk import SmallDisk

RETENTION_S = 7 * 86400.0


def line(custom_id: str, url: str = "/v1/completions", method: str = "POST", **body: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body}).encode()


def lines(count: int) -> bytes:
    return b"\n".join(line(f"line {number}", prompt=[number + 5], max_tokens=3) for number in range(count))


@pytest.fixture
async def batches(engine: FakeEngine, model: ServedModel, tmp_path: Path) -> AsyncIterator[OpenBatches]:
    database = opened(f"sqlite://{tmp_path / 'store.db'}")
    store = BatchStore(database, RETENTION_S)
    yield OpenBatches(make_service(engine, model), store)
    store.close()


def app_of(batches: OpenBatches, access: Access | None = None) -> FastAPI:
    features = features_with(batches.service, batches)
    return create_app(batches.service, access or Access(), features)


@asynccontextmanager
async def working(batches: OpenBatches) -> AsyncIterator[Worker[LineClaim]]:
    """Runs a replica's worker in the background of a test."""
    worker = Worker(
        LineKind(batches.service, app_of(batches), batches.store), batches.store.leases, batches.store.has_work
    )
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def api(batches: OpenBatches) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(app_of(batches))
    async with (
        httpx.AsyncClient(transport=transport) as client,
        openai.AsyncOpenAI(base_url="http://roost/v1", api_key="none", http_client=client, max_retries=0) as api,
    ):
        yield api


def change(batches: OpenBatches, columns: str) -> None:
    """Changes columns of all batches."""
    batches.store._database.run_now(lambda each: each.execute(f"UPDATE roost_batches SET {columns}"), writes=True)


async def ended(api: openai.AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(60):
        while (batch := await api.batches.retrieve(batch_id)).status == "in_progress":
            await asyncio.sleep(0.02)
    return batch


async def started(api: openai.AsyncOpenAI, content: bytes, window: Any = "24h") -> Any:
    file = await api.files.create(file=("in.jsonl", content), purpose="batch")
    return await api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window=window, metadata={"job": "night"}
    )


async def outputs(api: openai.AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(each) for each in (await api.files.content(file_id)).text.splitlines()]


async def test_openais_example_runs_unchanged(api: openai.AsyncOpenAI, batches: OpenBatches, tmp_path: Path) -> None:
    """Upload, create, poll, download; then list and delete."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"\n\n".join([lines(5), line("wrong", prompt=[5], max_tokens=-1)]))
    file = await api.files.create(file=path, purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.object) == (
        len(path.read_bytes()),
        "requests.jsonl",
        "batch",
        "file",
    )
    batch = await api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"job": "night"}
    )
    assert (batch.status, batch.output_file_id, batch.metadata) == ("in_progress", None, {"job": "night"})
    assert batch.expires_at == batch.created_at + 86400
    async with working(batches):
        batch = await ended(api, batch.id)
    assert batch.status == "completed"
    assert batch.completed_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 6, "completed": 5, "failed": 1}
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    done = await outputs(api, batch.output_file_id)
    assert [each["custom_id"] for each in done] == [f"line {number}" for number in range(5)]
    assert [each["response"]["status_code"] for each in done] == [200] * 5
    assert done[0]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    (failed,) = await outputs(api, batch.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("wrong", 400)
    assert [each.id async for each in api.batches.list()] == [batch.id]
    files = {each.id: each async for each in api.files.list()}
    assert files.keys() == {file.id, batch.output_file_id, batch.error_file_id}
    assert files[batch.output_file_id].purpose == "batch_output"
    assert (await api.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await api.files.retrieve(file.id)


async def test_two_replicas_share_a_batch(api: openai.AsyncOpenAI, batches: OpenBatches, model: ServedModel) -> None:
    engines = [FakeEngine(VOCAB_SIZE), FakeEngine(VOCAB_SIZE)]
    batch = await started(api, lines(60))
    async with AsyncExitStack() as stack:
        for engine in engines:
            store = BatchStore(batches.store._database, RETENTION_S)
            await stack.enter_async_context(working(OpenBatches(make_service(engine, model), store)))
        batch = await ended(api, batch.id)
    found = await outputs(api, batch.output_file_id)
    assert [each["custom_id"] for each in found] == [f"line {number}" for number in range(60)]
    assert sum(len(engine.requests) for engine in engines) == 60
    assert all(engine.requests for engine in engines)
    assert all(request.preemptible for engine in engines for request in engine.requests)


async def test_a_cancelled_batch_keeps_what_it_has(
    api: openai.AsyncOpenAI, batches: OpenBatches, engine: FakeEngine
) -> None:
    engine.num_served = 10
    batch = await started(api, lines(40))
    async with working(batches) as worker:
        while not (await api.batches.retrieve(batch.id)).request_counts.completed:
            await asyncio.sleep(0.01)
        await until(lambda: len(engine.requests) > engine.num_served)
        batch = await api.batches.cancel(batch.id)
        assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
        worker._renewed_at = 0.0
        async with asyncio.timeout(60):
            while engine.running:
                await asyncio.sleep(0.02)
    assert len(await outputs(api, batch.output_file_id)) == batch.request_counts.completed < 40


async def test_an_expired_batch_says_so_of_each_line(api: openai.AsyncOpenAI, batches: OpenBatches) -> None:
    batch = await started(api, lines(3), "1h")
    change(batches, "expires = 0")
    async with working(batches):
        batch = await ended(api, batch.id)
    assert (batch.status, batch.output_file_id, batch.request_counts.failed) == ("expired", None, 3)
    found = await outputs(api, batch.error_file_id)
    assert {(each["error"]["code"], each["error"]["message"]) for each in found} == {
        ("batch_expired", "the batch expired before this line ran")
    }


async def test_a_batch_expires_if_nobody_serves_its_model(
    api: openai.AsyncOpenAI, batches: OpenBatches, engine: FakeEngine
) -> None:
    """Even more lines than end at a time, and while other requests have all slots."""
    engine.running |= {str(number) for number in range(4)}
    batch = await started(api, lines(_MAX_EXPIRED + 3), "1h")
    change(batches, "model = 'another', expires = 0")
    async with working(batches):
        batch = await ended(api, batch.id)
    assert (batch.status, batch.request_counts.failed) == ("expired", _MAX_EXPIRED + 3)
    found = await outputs(api, batch.error_file_id)
    assert {each["error"]["message"] for each in found} == {
        "the batch expired before a server with its model ran this line"
    }
    assert len({each["custom_id"] for each in found}) == _MAX_EXPIRED + 3


async def test_lines_with_a_common_prefix_run_next_to_each_other(api: openai.AsyncOpenAI, batches: OpenBatches) -> None:
    prompts = [[5 + number % 3] for number in range(12)]
    batch = await started(api, b"\n".join(line(str(at), prompt=prompt) for at, prompt in enumerate(prompts)))
    kind = LineKind(batches.service, app_of(batches), batches.store)
    claims = [claim for _ in range(4) for claim in await kind.claim(Places(3, 3))]
    assert [json.loads(claim.data)["body"]["prompt"] for claim in claims] == [[5]] * 4 + [[6]] * 4 + [[7]] * 4
    await batches.store.leases.release([claim.lease for claim in claims])
    async with working(batches):
        batch = await ended(api, batch.id)
    found = await outputs(api, batch.output_file_id)
    assert [each["custom_id"] for each in found] == [str(place) for place in range(12)]


@pytest.fixture
def disk(tmp_path: Path) -> SmallDisk:
    return SmallDisk(str(tmp_path / "store.db"))


@pytest.fixture
def database(disk: SmallDisk) -> Iterator[Database]:
    database = Database(disk)
    database.run_now(lambda each: upgrade(each, TABLES), writes=True)
    yield database
    database.close()


async def test_a_full_disk_stops_uploads_and_lets_batches_wait(
    engine: FakeEngine, model: ServedModel, disk: SmallDisk, database: Database
) -> None:
    """Nothing half-written is served, and a batch goes on when there is room again."""
    batches = OpenBatches(make_service(engine, model), BatchStore(database, RETENTION_S))
    transport = httpx.ASGITransport(app_of(batches))
    async with (
        httpx.AsyncClient(transport=transport) as client,
        openai.AsyncOpenAI(base_url="http://roost/v1", api_key="none", http_client=client, max_retries=0) as api,
    ):
        batch = await started(api, lines(30))
        ((num_pages,),) = database.run_now(lambda each: each.rows("PRAGMA page_count"))
        disk.max_pages = num_pages
        with pytest.raises(openai.APIStatusError, match="full") as failure:
            await api.files.create(file=("in.jsonl", lines(5000)), purpose="batch")
        assert failure.value.status_code == 507
        assert [each.id async for each in api.files.list()] == [batch.input_file_id]
        async with working(batches):
            await asyncio.sleep(2.0)
            batch = await api.batches.retrieve(batch.id)
            assert (batch.status, batch.output_file_id) == ("in_progress", None)
            disk.max_pages = 0
            batch = await ended(api, batch.id)
        found = await outputs(api, batch.output_file_id)
    assert (batch.status, [each["custom_id"] for each in found]) == (
        "completed",
        [f"line {number}" for number in range(30)],
    )


async def test_a_busy_replica_claims_nothing(api: openai.AsyncOpenAI, batches: OpenBatches, engine: FakeEngine) -> None:
    engine.running |= {str(number) for number in range(4)}  # all slots are taken
    batch = await started(api, lines(3))
    async with working(batches):
        await asyncio.sleep(0.3)
        assert not engine.requests
        engine.running.clear()
        assert (await ended(api, batch.id)).status == "completed"


async def test_a_draining_replica_leaves_its_lines_to_others(
    api: openai.AsyncOpenAI, batches: OpenBatches, engine: FakeEngine, model: ServedModel
) -> None:
    engine.gate.clear()
    batch = await started(api, lines(8))
    async with working(batches):
        async with asyncio.timeout(60):
            while len(engine.running) < 8:
                await asyncio.sleep(0.02)
        batches.service.open_requests.is_draining = True
        async with asyncio.timeout(60):
            while engine.running or batches.service.open_requests.count:
                await asyncio.sleep(0.02)
        other = BatchStore(batches.store._database, RETENTION_S)
        async with working(OpenBatches(make_service(FakeEngine(VOCAB_SIZE), model), other)):
            assert (await ended(api, batch.id)).request_counts.completed == 8


async def test_a_replica_that_a_newer_one_has_excluded_stops_its_lines(
    engine: FakeEngine, model: ServedModel, tmp_path: Path
) -> None:
    """Other replicas run them when their leases end."""
    address = f"sqlite://{tmp_path / 'store.db'}"
    store = BatchStore(open_database(StoreAddress.parse(address), TABLES), RETENTION_S)
    batches = OpenBatches(make_service(engine, model), store)
    batches.database = store._database
    transport = httpx.ASGITransport(app_of(batches))
    engine.gate.clear()
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://roost") as client,
        openai.AsyncOpenAI(base_url="http://roost/v1", api_key="none", http_client=client, max_retries=0) as api,
        working(batches),
    ):
        batch = await started(api, lines(8))
        await until(lambda: len(engine.running) == 8)
        upgrade_further(address, TABLES, oldest=TABLES.version + 1)
        await until(lambda: not engine.running)
        with pytest.raises(openai.InternalServerError) as failure:
            await api.batches.retrieve(batch.id)
        assert (failure.value.status_code, failure.value.code) == (503, "store_outdated")
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "store_outdated")
        assert (await client.get("/health")).status_code == 200
    store.close()


async def test_tenants_see_their_own_only(batches: OpenBatches) -> None:
    access = Access(ApiKeys(["a:key-of-a", "b:key-of-b"]))
    transport = httpx.ASGITransport(app_of(batches, access))
    async with httpx.AsyncClient(transport=transport) as client:
        a, b = (
            openai.AsyncOpenAI(base_url="http://roost/v1", api_key=f"key-of-{name}", http_client=client, max_retries=0)
            for name in "ab"
        )
        batch = await started(a, lines(2))
        async with working(batches):
            batch = await ended(a, batch.id)
        for work in (
            lambda: b.batches.retrieve(batch.id),
            lambda: b.batches.cancel(batch.id),
            lambda: b.files.content(batch.output_file_id),
            lambda: b.files.delete(batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                await work()
        with pytest.raises(openai.BadRequestError, match="there is no file with the id"):
            await b.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"
            )
        assert [each.id async for each in b.files.list()] == []
        assert len(await outputs(a, batch.output_file_id)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file: has no line"),
        (b"{", "file: line 1 of the requests: the line is not valid JSON"),
        (line("a", prompt="x") + b"\n" + line("a", prompt="y"), "line 2 of the requests: custom_id is that of line 1"),
        (line("a", url="/v1/embeddings"), 'line 1 of the requests: url must be "/v1'),
        (line("a", method="GET"), 'line 1 of the requests: method must be "POST", got "GET"'),
        (line("a", stream=True), "line 1 of the requests: body.stream must be left out"),
    ],
)
async def test_a_file_is_checked_when_it_is_uploaded(
    api: openai.AsyncOpenAI, batches: OpenBatches, content: bytes, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await api.files.create(file=("in.jsonl", content), purpose="batch")
    assert [each.id async for each in api.files.list()] == []
    rows = batches.store._database.run_now(lambda each: each.rows("SELECT count(*) FROM roost_file_lines"))
    assert rows == [(0,)]


async def test_lists_have_pages(api: openai.AsyncOpenAI) -> None:
    """Also where the newest file was deleted that a page would follow."""
    files = [await api.files.create(file=(f"{number}.jsonl", lines(1)), purpose="batch") for number in range(5)]
    ids = [file.id for file in files]
    assert [each.id async for each in api.files.list(limit=2)] == ids[::-1]
    assert [each.id async for each in api.files.list(limit=2, order="asc", purpose="batch")] == ids
    page = await api.files.list(limit=2, order="asc", after=ids[0])
    assert ([each.id for each in page.data], page.has_more) == (ids[1:3], True)
    page = await api.files.list(limit=3, order="asc", after=ids[1])
    assert ([each.id for each in page.data], page.has_more) == (ids[2:], False)
    await api.files.delete(ids[4])
    for after in (ids[4], "\0", "nothing"):
        for read in (api.files.list, api.batches.list):
            with pytest.raises(openai.BadRequestError, match="after: the list has no item with the id"):
                await read(after=after)


EXPIRY: Any = {"anchor": "created_at", "seconds": 3600}


async def test_files_expire_when_their_client_says(api: openai.AsyncOpenAI, batches: OpenBatches) -> None:
    file = await api.files.create(file=("in.jsonl", lines(1)), purpose="batch", expires_after=EXPIRY)
    assert file.expires_at == file.created_at + 3600
    batch = await api.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", output_expires_after=EXPIRY
    )
    async with working(batches):
        batch = await ended(api, batch.id)
    output = await api.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 3600


@pytest.mark.parametrize(
    ("expiry", "message"),
    [
        ({"anchor": "created_at"}, "seconds is required"),
        ({"anchor": "now", "seconds": 3600}, 'anchor must be "created_at"'),
        ({"anchor": "created_at", "seconds": 60}, 'seconds must be at least 3600, got "?60'),
        ({"anchor": "created_at", "seconds": "x"}, "seconds must be a whole number"),
        ({"anchor": "created_at", "seconds": 700_000}, r"seconds must be at most 604800, which is 7 days"),
    ],
)
async def test_expiry_is_checked(api: openai.AsyncOpenAI, expiry: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=rf"expires_after\.{message}"):
        await api.files.create(file=("in.jsonl", lines(1)), purpose="batch", expires_after=expiry)
    file = await api.files.create(file=("in.jsonl", lines(1)), purpose="batch")
    with pytest.raises(openai.BadRequestError, match=rf"output_expires_after\.{message}"):
        await api.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", output_expires_after=expiry
        )


async def test_usage_of_a_batch_is_that_of_its_responses(api: openai.AsyncOpenAI, batches: OpenBatches) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    urls = {"/v1/completions": {"prompt": "a", "max_tokens": 2}, "/v1/chat/completions": chat}
    for url, body in {**urls, "/v1/responses": {"input": "a", "max_output_tokens": 2}}.items():
        content = [{"custom_id": f"{number}", "method": "POST", "url": url, "body": body} for number in range(2)]
        file = await api.files.create(
            file=("in.jsonl", b"\n".join(json.dumps(each).encode() for each in content)), purpose="batch"
        )
        batch = await api.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
        assert batch.usage is not None
        assert batch.usage.total_tokens == 0
        async with working(batches):
            batch = await ended(api, batch.id)
        usages = [each["response"]["body"]["usage"] for each in await outputs(api, batch.output_file_id)]
        assert batch.usage is not None
        assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in usages) > 0
        assert batch.usage.output_tokens == 4
        assert batch.usage.output_tokens_details.reasoning_tokens == 0


async def test_lines_of_messages_get_anthropics_responses(api: openai.AsyncOpenAI, batches: OpenBatches) -> None:
    good = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    content = [line(name, "/v1/messages", **good, **more) for name, more in (("good", {}), ("bad", {"top_p": 7}))]
    file = await api.files.create(file=("in.jsonl", b"\n".join(content)), purpose="batch")
    endpoint: Any = "/v1/messages"
    batch = await api.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    async with working(batches):
        batch = await ended(api, batch.id)
        whole: Any = await api.post("/messages", body=good, cast_to=object)
    (done,) = await outputs(api, batch.output_file_id)
    (failed,) = await outputs(api, batch.error_file_id)
    message = checked(anthropic.types.Message, done["response"]["body"])
    assert (done["custom_id"], done["response"]["body"]["content"]) == ("good", whole["content"])
    error = checked(anthropic.types.ErrorResponse, failed["response"]["body"]).error
    assert (failed["custom_id"], failed["response"]["status_code"], error.type) == ("bad", 400, "invalid_request_error")
    assert batch.usage is not None
    assert (batch.usage.output_tokens, message.usage.output_tokens) == (2, 2)
    assert batch.usage.input_tokens == whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"]


async def test_openapi_names_the_type_of_a_files_content(api: openai.AsyncOpenAI) -> None:
    schema: Any = await api.get("/../openapi.json", cast_to=object)
    assert list(schema["paths"]["/v1/files/{file_id}/content"]["get"]["responses"]["200"]["content"]) == [
        "application/jsonl"
    ]


async def test_other_requests_are_refused(api: openai.AsyncOpenAI) -> None:
    file = await api.files.create(file=("in.jsonl", lines(1)), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose must be \"batch\", got 'fine-tune'"):
        await api.files.create(file=("in.jsonl", lines(1)), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match=r"the lines of .* name /v1/completions, not /v1/responses"):
        await api.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    window: Any = "soon"
    with pytest.raises(openai.BadRequestError, match="completion_window"):
        await api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window=window)
    window = "9999d"
    with pytest.raises(
        openai.BadRequestError, match=r"completion_window must be at most 7 days \(--store-days\), got 9999d"
    ):
        await api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window=window)
    batch = await api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="is the input of a batch in progress"):
        await api.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        await api.batches.retrieve(batch.id + "0")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({f"n{number}": 1 for number in range(17)}, "metadata must have at most 16 entries, got 17"),
        ({"n" * 65: "v"}, f"metadata.{'n' * 60} must have at most 64 characters, got 65"),
        ({"name": "v" * 513}, "metadata.name must have at most 512 characters, got 513"),
    ],
)
@pytest.mark.parametrize("path", ["/batches", "/responses"])
async def test_metadata_is_bounded(api: openai.AsyncOpenAI, path: str, metadata: dict[str, Any], message: str) -> None:
    body = {"input_file_id": "file-0", "endpoint": "/v1/completions", "completion_window": "24h", "input": "a"}
    with pytest.raises(openai.BadRequestError, match=message) as failure:
        await api.post(path, body={**body, "metadata": metadata}, cast_to=dict)
    assert failure.value.param == "metadata"
    for allowed in ({f"{number:064}": "v" * 512 for number in range(16)}, {}):
        with pytest.raises(openai.BadRequestError, match="there is no file"):
            await api.post("/batches", body={**body, "metadata": allowed}, cast_to=dict)


@pytest.mark.parametrize(
    ("headers", "content", "message"),
    [
        ({}, b"", "send the file as multipart/form-data"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"nothing", "the body is not multipart/form-data"),
        (
            {"content-type": "multipart/form-data; boundary=x"},
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n',
            "the form has no field file",
        ),
    ],
)
async def test_a_body_that_is_no_form(
    batches: OpenBatches, headers: dict[str, str], content: bytes, message: str
) -> None:
    transport = httpx.ASGITransport(app_of(batches))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        response = await client.post("/v1/files", headers=headers, content=content)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.fixture
def memory(engine: FakeEngine, model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> OpenBatches:
    """Files and batches of a server without a database that has two tenants."""
    monkeypatch.setattr(open_batches, "_MEMORY_BYTES", 20_000)
    monkeypatch.setattr(open_batches, "_MIN_MEMORY_BYTES", 0)
    opening = Opening(make_service(engine, model), load_settings({}), num_tenants=2)
    return open_batches.open_batches(opening)


async def test_a_batch_runs_in_memory_until_the_server_stops(memory: OpenBatches) -> None:
    transport = httpx.ASGITransport(app_of(memory))
    async with (
        httpx.AsyncClient(transport=transport) as client,
        openai.AsyncOpenAI(base_url="http://roost/v1", api_key="none", http_client=client, max_retries=0) as api,
        working(memory),
    ):
        batch = await ended(api, (await started(api, lines(5))).id)
        assert batch.status == "completed"
        assert len(await outputs(api, batch.output_file_id)) == 5
        ready = await client.get("http://roost/health/ready")
        assert ready.json() == {"status": "ready"}
    await memory.close()


async def test_files_in_memory_have_a_share_of_it(memory: OpenBatches) -> None:
    transport = httpx.ASGITransport(app_of(memory))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        content = line("long", prompt="a" * 6000)
        upload = {"data": {"purpose": "batch"}, "files": {"file": content}}
        assert (await client.post("/v1/files", **upload)).status_code == 200
        response = await client.post("/v1/files", **upload)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "quota_exceeded")
    assert "may take 10,000 (--store-gib, or a share of 256 MiB without --store)" in response.json()["error"]["message"]
    await memory.close()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_lines_are_split_wherever_pieces_are_cut(size: int) -> None:
    content, splitter = b"one\n\ntwo\r\n \nthree", LineSplitter(1000)
    found: list[bytes] = []
    for start in range(0, len(content), size):
        found += splitter.feed(content[start : start + size])
    assert [*found, *splitter.end()] == [b"one\n", b"two\r\n", b"three\n"]


def test_a_line_without_an_end_is_refused() -> None:
    splitter, check = LineSplitter(10), InputCheck(10, decode_json)
    assert splitter.feed(b"12345\n678") == [b"12345\n"]
    cut = splitter.feed(b"9" * 8200)
    assert (len(cut), splitter.end()) == (1, [])
    with pytest.raises(ApiError, match="line 1 of the requests: the line is longer than 8202 bytes"):
        check.add(cut)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1000, "file: line 3 of the requests: body is longer than --max-body-bytes, 1000"),
        (9200, "file: line 3 of the requests: the line is longer than 9192 bytes, as --max-body-bytes is 1000"),
    ],
)
async def test_a_line_that_no_request_may_have_is_refused_by_its_number(
    batches: OpenBatches, size: int, message: str
) -> None:
    transport = httpx.ASGITransport(app_of(OpenBatches(limited(batches.service, 1000), batches.store)))
    content = b"\n\n".join([lines(2), line("long", prompt="a" * size), line("last", prompt="a")])
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})
        assert (response.status_code, response.json()["error"]["message"]) == (400, message)
        assert (await client.get("/v1/files")).json()["data"] == []
