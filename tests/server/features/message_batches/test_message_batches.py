"""Message batches as Anthropic's client uses them, with requests run by a worker on the fake engine."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import anthropic
import httpx
import httpx2
import pytest
from batch_workers import working
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service
from fastapi import FastAPI
from query_plans import scans_of
from roost.server.app import create_app
from roost.server.database.database import Transaction
from roost.server.database.pages import PageSpec
from roost.server.features.batches import batch_table, line_claims
from roost.server.features.batches.batch_lines import MESSAGES_URL
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.features.batches.tenant_turns import Places
from roost.server.http.api_keys import ApiKeys
from roost.server.http.auth import Access
from roost.server.text.served_model import ServedModel


@pytest.fixture
async def batches(engine: FakeEngine, model: ServedModel, address: str) -> AsyncIterator[OpenBatches]:
    store = BatchStore(opened(address), 7 * 86400.0)
    yield OpenBatches(make_service(engine, model), store)
    store.close()


@pytest.fixture
def app(batches: OpenBatches) -> FastAPI:
    return create_app(batches.service, features=features_with(batches.service, batches))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        yield client


@pytest.fixture
async def api(app: FastAPI) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as client,
        anthropic.AsyncAnthropic(base_url="http://roost", api_key="none", http_client=client, max_retries=0) as api,
    ):
        yield api


def request(custom_id: str, text: str = "hi", **params: Any) -> Any:
    fields = {"model": "counter", "max_tokens": 3, "messages": [{"role": "user", "content": text}], **params}
    return {"custom_id": custom_id, "params": fields}


async def ended(api: anthropic.AsyncAnthropic, batch_id: str) -> Any:
    async with asyncio.timeout(60):
        while (batch := await api.messages.batches.retrieve(batch_id)).processing_status != "ended":
            await asyncio.sleep(0.02)
    return batch


async def results(api: anthropic.AsyncAnthropic, batch_id: str) -> dict[str, Any]:
    return {each.custom_id: each.result async for each in await api.messages.batches.results(batch_id)}


def counts(batch: Any) -> dict[str, int]:
    """Returns the counts that are not 0."""
    return {name: count for name, count in batch.request_counts.model_dump().items() if count}


async def test_a_batch_runs_to_its_end(
    api: anthropic.AsyncAnthropic, client: httpx.AsyncClient, batches: OpenBatches
) -> None:
    requests = [request("one"), request("two", "ho"), request("bad", top_p=7), request("worse", messages="x")]
    made = await api.messages.batches.create(requests=requests)
    assert (made.processing_status, made.results_url, counts(made)) == ("in_progress", None, {"processing": 4})
    async with working(batches):
        batch = await ended(api, made.id)
    assert counts(batch) == {"succeeded": 2, "errored": 2}
    assert batch.results_url == f"http://roost/v1/messages/batches/{made.id}/results"
    assert batch.ended_at is not None
    assert (batch.expires_at - batch.created_at).total_seconds() == pytest.approx(86400)
    found = await results(api, made.id)
    whole = await api.messages.create(**request("one")["params"])
    assert found["one"].message.content == whole.content
    assert found["two"].message.usage.output_tokens == 3
    for name, field in (("bad", "top_p"), ("worse", "messages")):
        error = found[name].error.error
        assert (error.type, field in error.message) == ("invalid_request_error", True)
    usage = (await client.get(f"/v1/batches/{made.id.removeprefix('msg')}")).json()["usage"]
    assert usage["output_tokens"] == 6
    assert usage["input_tokens"] > 0


async def test_a_cancelled_batch_keeps_what_it_has(
    api: anthropic.AsyncAnthropic, client: httpx.AsyncClient, batches: OpenBatches
) -> None:
    """The other requests have no end."""
    requests = [request(str(number), max_tokens=1) for number in range(2)]
    requests += [request(str(number), max_tokens=10**6, ignore_eos=True) for number in range(2, 5)]
    made = await api.messages.batches.create(requests=requests)
    assert batches.store is not None
    async with working(batches):
        async with asyncio.timeout(60):
            while (await batches.store.batch(made.id.removeprefix("msg"))).num_completed < 2:
                await asyncio.sleep(0.02)
        early = await client.get(f"/v1/messages/batches/{made.id}/results")
        assert (early.status_code, "until it has ended" in early.text) == (404, True)
        with pytest.raises(anthropic.BadRequestError, match="cancel it first"):
            await api.messages.batches.delete(made.id)
        batch = await api.messages.batches.cancel(made.id)
    num_done = counts(batch)["succeeded"]
    assert (batch.processing_status, counts(batch)) == ("ended", {"succeeded": num_done, "canceled": 5 - num_done})
    assert batch.cancel_initiated_at == batch.ended_at
    found = await results(api, made.id)
    kinds = [found[str(number)].type for number in range(5)]
    assert kinds.count("succeeded") == num_done >= 2
    assert kinds.count("canceled") == 5 - num_done
    assert kinds[:2] == ["succeeded", "succeeded"]
    deleted = await api.messages.batches.delete(made.id)
    assert (deleted.id, deleted.type) == (made.id, "message_batch_deleted")
    for call in (api.messages.batches.retrieve, api.messages.batches.cancel, api.messages.batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            await call(made.id)
    assert (await client.get("/v1/files")).json()["data"] == []


async def test_an_expired_batch_says_so_of_each_request(api: anthropic.AsyncAnthropic, batches: OpenBatches) -> None:
    made = await api.messages.batches.create(requests=[request("one"), request("two")])
    assert batches.store is not None
    expire = "UPDATE roost_batches SET expires = 0"
    batches.store._database.run_now(lambda each: each.execute(expire), writes=True)
    async with working(batches):
        assert counts(await ended(api, made.id)) == {"expired": 2}
    assert {name: each.type for name, each in (await results(api, made.id)).items()} == {
        "one": "expired",
        "two": "expired",
    }


async def test_batches_are_listed_in_pages_both_ways(api: anthropic.AsyncAnthropic, client: httpx.AsyncClient) -> None:
    ids = [(await api.messages.batches.create(requests=[request("one")])).id for _ in range(5)]
    file = {
        "file": ("in.jsonl", b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}')
    }
    uploaded = (await client.post("/v1/files", data={"purpose": "batch"}, files=file)).json()["id"]
    body = {"input_file_id": uploaded, "endpoint": "/v1/completions", "completion_window": "24h"}
    other = (await client.post("/v1/batches", json=body)).json()["id"]
    assert [each.id async for each in api.messages.batches.list(limit=2)] == ids[::-1]
    page = await api.messages.batches.list(limit=2, before_id=ids[1])
    assert ([each.id for each in page.data], page.has_more) == ([ids[3], ids[2]], True)
    page = await api.messages.batches.list(limit=2, after_id=ids[1])
    assert ([each.id for each in page.data], page.has_more) == ([ids[0]], False)
    for unknown in ("x", f"msg{other}", "msgbatch_\0"):
        for field in ("after_id", "before_id"):
            response = await client.get("/v1/messages/batches", params={field: unknown})
            assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
        for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
            response = await client.request(method, f"/v1/messages/batches/{unknown.replace(chr(0), '%00')}{path}")
            assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "requests"),
        ([request("a b")], "custom_id"),
        ([request("a" * 65)], "custom_id"),
        ([{"custom_id": "a"}], "params"),
        ([request("a"), request("a")], "requests: number 2"),
        ([request("a", stream=True)], "body.stream must be left out"),
        ([request("a", seed=2**70)], "64 bits"),
    ],
)
async def test_requests_that_cannot_be_are_refused(
    client: httpx.AsyncClient, requests: list[Any], message: str
) -> None:
    response = await client.post("/v1/messages/batches", json={"requests": requests})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert (await client.get("/v1/messages/batches")).json()["data"] == []


async def test_lines_of_messages_are_for_message_batches_only(client: httpx.AsyncClient) -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/messages", "body": {}}'
    response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", line)})
    assert response.status_code == 400


async def test_tenants_see_their_own_only(batches: OpenBatches) -> None:
    access = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))
    app = create_app(batches.service, access, features_with(batches.service, batches))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        client.headers["x-api-key"] = "key-of-alice"
        made = (await client.post("/v1/messages/batches", json={"requests": [request("a")]})).json()["id"]
        client.headers["x-api-key"] = "key-of-bob"
        assert (await client.get("/v1/messages/batches")).json()["data"] == []
        for method, path in (("GET", ""), ("GET", "/results"), ("POST", "/cancel"), ("DELETE", "")):
            assert (await client.request(method, f"/v1/messages/batches/{made}{path}")).status_code == 404


async def test_older_replicas_leave_lines_of_messages(
    api: anthropic.AsyncAnthropic, batches: OpenBatches, model: ServedModel
) -> None:
    """They look for the model by its name, and would end the lines with errors."""
    await api.messages.batches.create(requests=[request("one")])
    store = batches.store
    assert store is not None
    claim, places = line_claims.claim, Places(4, 4)
    claimed = store._database.run_now(lambda each: claim(each, "older", model.identity, places, 2**40), writes=True)
    assert claimed == []
    assert len(await store.claim(model.identity, places)) == 1


def fill(transaction: Transaction, name: str) -> None:
    """Copies a batch 200 times, ends half of the copies, and tells the database's planner how many rows there are."""
    batch = batch_table.find(transaction, "", name)
    assert batch is not None
    for number in range(200):
        batch_table.insert(transaction, replace(batch, id=f"{name}-{number}"), 86400.0)
        if number % 2:
            batch_table.cancel(transaction, "", f"{name}-{number}")
    transaction.execute("ANALYZE")


async def test_no_statement_scans_batches(api: anthropic.AsyncAnthropic, batches: OpenBatches) -> None:
    made = await api.messages.batches.create(requests=[request("one")])
    name = made.id.removeprefix("msg")
    assert batches.store is not None
    database = batches.store._database
    database.run_now(partial(fill, name=name), writes=True)
    for newest_first in (False, True):
        for after in (None, name):
            spec = PageSpec(2, after, newest_first)
            read = partial(batch_table.read_list, tenant="", spec=spec, url=MESSAGES_URL)
            assert scans_of(database, read) == set()
    assert scans_of(database, partial(batch_table.delete, tenant="", batch_id=name)) == set()
