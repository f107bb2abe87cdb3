"""Responses in a database: two replicas around the fake engine, of which one goes away.

The engine counts, so a continued response is right exactly if it counts on.
"""

import asyncio
import itertools
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_types import checked
from databases import FAULTS, FaultyDatabase, PostgresqlServer, faulty_database, opened
from fake_engine import STATE_FORMAT, FakeEngine, snapshot_of
from fake_server import VOCAB_SIZE, features_with, live, make_service, until
from openai.types.responses import Response, ResponseErrorEvent
from roost.engine import (
    CacheStats,
    ConstraintLostError,
    EngineDeadError,
    EngineStats,
    Request,
    RequestSnapshotFormat,
    TokenOutput,
)
from roost.server.app import create_app
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, dialect_of
from roost.server.feature import Opening
from roost.server.features.responses import response_table
from roost.server.features.responses.adoption import AdoptionKind
from roost.server.features.responses.background_responses import ResumableBuilder
from roost.server.features.responses.checkpoint_files import CheckpointFiles
from roost.server.features.responses.checkpointer import Checkpointer
from roost.server.features.responses.open_responses import OpenResponses, open_responses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.features.responses.response_table import Adoption
from roost.server.generation.admission import PreemptibleAdmission
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.observability.metrics import Metrics
from roost.server.storage.claims import Places
from roost.server.storage.objects import Bounds
from roost.server.storage.worker import Worker
from roost.server.text.served_model import ServedModel
from unpacked_states import saved_state

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

PROBED, PATIENCE = "roost.server.database.database.PROBE_S", "roost.server.database.database._PATIENCE_S"
"""Names of the seconds between two probes of a store, and of those for which a request waits for one."""


class PacedEngine(FakeEngine):
    """An engine that gives each request a number of tokens, and then waits."""

    def __init__(self) -> None:
        super().__init__(VOCAB_SIZE)
        self.allowed = 1000

    async def _count(self, request: Request) -> AsyncGenerator[TokenOutput]:
        outputs = super()._count(request)
        for count in itertools.count():
            while count >= self.allowed:
                await asyncio.sleep(0.005)
            try:
                yield await anext(outputs)
            except StopAsyncIteration:
                return


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For checkpoints; the first one makes it."""
    return tmp_path / "checkpoints"


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def make_file(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()


on_sqlite = pytest.mark.parametrize("address", ["sqlite"], indirect=True)


@dataclass
class Replica:
    """A server without a socket.

    Attributes:
      client: Client of it.
      adopter: What its loop does every two seconds.
    """

    service: Service
    engine: PacedEngine
    feature: OpenResponses
    responses: ResponseStore
    client: httpx.AsyncClient
    adopter: Worker[Adoption]

    async def created(self, **fields: Any) -> dict[str, Any]:
        body = {"input": "hi", "max_output_tokens": 10, "background": True, **fields}
        response = await self.client.post("/v1/responses", json=body)
        assert response.status_code == 200, response.text
        if not fields.get("stream"):
            return dict(response.json())
        return dict(events_of(response.text)[0]["response"])

    async def fetched(self, response_id: str) -> dict[str, Any]:
        response = await self.client.get(f"/v1/responses/{response_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def ended(self, response_id: str) -> dict[str, Any]:
        """The response, once it has ended on any replica."""
        async with asyncio.timeout(60):
            while (response := await self.fetched(response_id))["status"] == "in_progress":
                await asyncio.sleep(0.02)
        checked(Response, json.dumps(response), frozenset({"inexact"}))
        return response

    async def events(self, response_id: str, after: int = -1) -> list[dict[str, Any]]:
        """All events after a number, until the end."""
        query = "" if after < 0 else f"&starting_after={after}"
        return events_of((await self.client.get(f"/v1/responses/{response_id}?stream=true{query}")).text)

    async def dies(self) -> None:
        """Ends all work, and with it all writes, as `kill -9` does."""
        for task in list(self.feature.store.tasks.values()):
            task.cancel()
        await until(lambda: not self.feature.is_busy)


def kind_of(replica: Replica) -> AdoptionKind:
    kind = replica.adopter._kind
    assert isinstance(kind, AdoptionKind)
    return kind


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


@asynccontextmanager
async def replica(address: str, model: ServedModel, access: Access | None = None) -> AsyncIterator[Replica]:
    engine = PacedEngine()
    responses = ResponseStore(Database(dialect_of(StoreAddress.parse(address))), 1000.0)
    service = replace(
        make_service(engine, replace(model, identity="counter"), keep_alive_s=0.5),
        metrics=Metrics(lambda: engine.stats),
    )
    feature = OpenResponses(service, responses)
    app = create_app(service, access or Access(), features_with(service, feature))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost", timeout=30) as client:
        adopter = Worker(AdoptionKind(service, responses), responses.leases)
        try:
            yield Replica(service, engine, feature, responses, client, adopter)
        finally:
            for task in list(feature.store.tasks.values()):
                task.cancel()
            await responses.close()


@pytest.fixture
async def replicas(address: str, model: ServedModel) -> AsyncIterator[tuple[Replica, Replica]]:
    opened(address).close()
    async with replica(address, model) as first, replica(address, model) as second:
        yield first, second


@contextmanager
def database_of(address: str) -> Iterator[Database]:
    database = Database(dialect_of(StoreAddress.parse(address)))
    yield database
    database.close()


def expire_leases(address: str, seconds_ago: float = 1e6) -> None:
    with database_of(address) as database:
        sql = "UPDATE roost_running SET lease_until = {now} - ?"
        database.run_now(lambda each: each.execute(sql, seconds_ago), writes=True)


async def num_tokens_logged(replica: Replica, address: str, at_least: int) -> None:
    """Waits until so many tokens are in the log."""

    def total(database: Database) -> int:
        ((count,),) = database.run_now(lambda each: each.rows("SELECT coalesce(sum(num_tokens), 0) FROM roost_events"))
        return int(count)

    with database_of(address) as database:
        await until(lambda: total(database) >= at_least, 10)


async def test_a_stored_response_is_everywhere(replicas: tuple[Replica, Replica]) -> None:
    """Also one that another replica's response continues."""
    first, second = replicas
    made = (await first.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3})).json()
    assert await second.fetched(made["id"]) == made
    body = {"input": "more", "max_output_tokens": 2, "previous_response_id": made["id"]}
    assert (await second.client.post("/v1/responses", json=body)).status_code == 200
    items = (await second.client.get(f"/v1/responses/{made['id']}/input_items")).json()
    assert [item["content"][0]["text"] for item in items["data"]] == ["hi"]
    assert (await second.client.delete(f"/v1/responses/{made['id']}")).json()["deleted"]
    assert (await first.client.get(f"/v1/responses/{made['id']}")).status_code == 404
    assert (await first.client.post("/v1/responses", json=body)).json()["error"][
        "code"
    ] == "previous_response_not_found"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_streamed_response_is_stored_before_its_last_event(
    replicas: tuple[Replica, Replica], stream: bool
) -> None:
    first, second = replicas
    body = {"input": "hi", "max_output_tokens": 3, "stream": stream}
    text = (await first.client.post("/v1/responses", json=body)).text
    last = events_of(text)[-1]["response"] if stream else json.loads(text)
    assert await second.fetched(last["id"]) == last


async def test_a_background_response_is_fetched_from_another_replica(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    first.engine.allowed = 0
    made = await first.created(max_output_tokens=5)
    assert (await second.fetched(made["id"])) == {**made, "status": "in_progress"}
    first.engine.allowed = 1000
    done = await second.ended(made["id"])
    assert (text_of(done), done["status"], done["background"]) == ("ABCDE", "incomplete", True)
    assert "inexact" not in done
    await until(lambda: first.responses.stats.ended == {"incomplete": 1})


@pytest.mark.parametrize("killed", ["before any token", "in the middle"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"stream": True}],
    ids=["plain", "logprobs", "stream"],
)
async def test_a_dead_replicas_response_is_continued(
    replicas: tuple[Replica, Replica], address: str, fields: dict[str, Any], killed: str
) -> None:
    first, second = replicas
    uninterrupted = await first.ended((await first.created(**{**fields, "stream": False}))["id"])
    at = 4 if killed == "in the middle" else 0
    first.engine.allowed = at
    creating = asyncio.create_task(first.created(**fields))
    if fields.get("stream"):
        await until(lambda: first.engine.running)
        with database_of(address) as database:
            ((name,),) = database.run_now(lambda e: e.rows("SELECT id FROM roost_responses WHERE is_running = 1"))
    else:
        name = (await creating)["id"]
    await num_tokens_logged(first, address, at)
    await first.dies()
    assert await second.adopter.look() is None
    assert not second.engine.running, "the lease has not ended"
    expire_leases(address)
    await second.adopter.look()
    done = await second.ended(name)
    assert done.pop("inexact", False) is (at > 0), "nothing was generated before the end of the first"
    for response in (done, uninterrupted):
        for changing in ("id", "created_at", "completed_at"):
            response.pop(changing, None)
        for item in response["output"]:
            item.pop("id")
    assert done == uninterrupted
    assert len(second.engine.requests[0].prompt_token_ids) == len(first.engine.requests[0].prompt_token_ids) + at
    assert second.responses.stats.adoptions == 1
    if fields.get("stream"):
        events = await second.events(name)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        deltas = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
        assert deltas == LETTERS[:10]
        seen = (await creating)["id"]
        assert seen == name
        for after in range(len(events)):
            assert await first.events(name, after) == events[after + 1 :]


@pytest.mark.parametrize("second_engine", ["x86", "arm"])
async def test_an_engine_like_the_owners_continues_exactly(
    replicas: tuple[Replica, Replica], address: str, second_engine: str
) -> None:
    """Another one leaves the response to such engines for a time, and then reads its tokens as a prompt."""
    first, second = replicas
    first.engine.checkpoints = RequestSnapshotFormat("x86", STATE_FORMAT.snapshot)
    second.engine.checkpoints = RequestSnapshotFormat(second_engine, STATE_FORMAT.snapshot)
    first.engine.allowed = 4
    made = await first.created(include=["message.output_text.logprobs"])
    await num_tokens_logged(first, address, 4)
    await first.dies()
    expire_leases(address, seconds_ago=30.0)
    await second.adopter.look()
    if second_engine != "x86":
        assert not second.engine.requests
        expire_leases(address, seconds_ago=61.0)
        await second.adopter.look()
    done = await second.ended(made["id"])
    assert text_of(done) == LETTERS[:10]
    assert len(done["output"][0]["content"][0]["logprobs"]) == 10
    prompt, (request,) = first.engine.requests[0].prompt_token_ids, second.engine.requests
    if second_engine == "x86":
        assert "inexact" not in done
        assert request.replay is not None
        assert (request.prompt_token_ids, request.params.max_tokens) == (prompt, 10)
        assert request.replay.token_ids == tuple(first.engine.given[first.engine.requests[0].id][:4])
    else:
        assert done["inexact"] is True
        assert request.replay is None
        assert (len(request.prompt_token_ids), request.params.max_tokens) == (len(prompt) + 4, 6)


async def import_state(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the id of a state whose file no key vouches for."""
    monkeypatch.setattr(PacedEngine, "stats", EngineStats(slots=4, cache=CacheStats(budget=10**6)))
    tokens = [5 + each % 20 for each in range(70)]
    file = STATE_FORMAT.export(saved_state(tokens, snapshot_of(tokens)))
    response = await replica.client.post("/v1/states/import", content=file)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


@on_sqlite
@pytest.mark.parametrize("how", ["background", "hand-over"])
async def test_what_continues_an_imported_state_is_continued_inexactly(
    replicas: tuple[Replica, Replica], address: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Other replicas have the state's tokens alone, even with the same engine, and none waits for a better one."""
    first, second = replicas
    for each in replicas:
        each.engine.checkpoints = RequestSnapshotFormat("x86", STATE_FORMAT.snapshot)
    state = await import_state(first, monkeypatch)
    first.engine.allowed = 4
    if how == "background":
        response_id = (await first.created(from_state=state))["id"]
        await num_tokens_logged(first, address, 4)
        await first.dies()
    else:
        reading = streaming(first, from_state=state)
        await num_tokens_streamed(first, 4)
        await first.responses.hand_over_streams()
        await first.engine.stop()
        first.engine.allowed = 1000
        response_id = events_of((await reading).text)[-1]["response_id"]
    assert first.engine.requests[0].state_is_imported
    expire_leases(address, seconds_ago=1.0)
    await second.adopter.look()
    done = await second.ended(response_id)
    assert done["inexact"] is True
    (request,) = second.engine.requests
    assert request.replay is None


def with_checkpoints(replica: Replica, folder: Path, evacuation_s: float = 60.0) -> Checkpointer:
    """Gives a replica a folder for checkpoints, and returns what takes them."""
    replica.engine.checkpoints = RequestSnapshotFormat("x86", STATE_FORMAT.snapshot)
    replica.responses.files = CheckpointFiles(folder, None, replica.responses.stats)
    files = replica.responses.files
    return Checkpointer(replica.engine, replica.responses, files, 0.0, 1e9, evacuation_s)


@on_sqlite
@pytest.mark.parametrize("file", ["whole", "torn", "of another response", "missing"])
async def test_a_response_goes_on_from_its_checkpoint(
    replicas: tuple[Replica, Replica], address: str, folder: Path, file: str
) -> None:
    """Or from its start, if the file is of no use."""
    first, second = replicas
    checkpointer = with_checkpoints(first, folder)
    with_checkpoints(second, folder)
    first.engine.allowed = 4
    made = await first.created(include=["message.output_text.logprobs"])
    await num_tokens_logged(first, address, 4)
    await checkpointer._look()
    (path,) = files_in(folder)
    first.engine.allowed = 6
    await num_tokens_logged(first, address, 6)
    await first.dies()
    match file:
        case "torn":
            path.write_bytes(path.read_bytes()[:-5])
        case "of another response":
            formats = RequestSnapshotFormat("x86", STATE_FORMAT.snapshot)
            path.write_bytes(formats.export(formats.load(path.read_bytes(), path.stem), "other"))
        case "missing":
            path.unlink()
    expire_leases(address)
    await second.adopter.look()
    done = await second.ended(made["id"])
    assert text_of(done) == LETTERS[:10]
    assert "inexact" not in done
    replay = second.engine.requests[0].replay
    assert replay is not None
    assert len(replay.token_ids) == 6
    assert (replay.snapshot is not None) == (file == "whole")
    assert second.responses.stats.checkpoint_errors == (file != "whole")
    await until(lambda: not files_in(folder))  # the response has ended


@on_sqlite
async def test_a_checkpoint_takes_the_place_of_the_one_before(
    replicas: tuple[Replica, Replica], address: str, folder: Path
) -> None:
    first, _ = replicas
    checkpointer = with_checkpoints(first, folder)
    first.engine.allowed = 2
    made = await first.created()
    names = []
    for count in (2, 4):
        first.engine.allowed = count
        await num_tokens_logged(first, address, count)
        await checkpointer._look()
        (path,) = files_in(folder)
        names.append(path.name)
    assert names[0] != names[1]
    assert first.responses.stats.checkpoints == 2
    await first.client.delete(f"/v1/responses/{made['id']}")
    await until(lambda: not files_in(folder))


@on_sqlite
async def test_an_evacuation_saves_what_was_generated(
    replicas: tuple[Replica, Replica], address: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = replicas
    checkpointer = with_checkpoints(first, folder)
    with_checkpoints(second, folder)
    first.engine.allowed = 5
    made = [await first.created(seed=1) for _ in range(3)]
    await num_tokens_logged(first, address, 15)
    await checkpointer.evacuate()
    assert "checkpointed 3 of 3 responses" in caplog.text
    await first.engine.stop()
    first.engine.allowed = 1000
    await until(lambda: not first.feature.is_busy)
    await second.adopter.look()
    assert [text_of(await second.ended(each["id"])) for each in made] == [LETTERS[:10]] * 3
    assert first.responses.stats.checkpoints == 3
    assert len(second.engine.requests) == 3
    for request in second.engine.requests:
        assert request.replay is not None
        assert len(request.replay.token_ids) == 5
        assert request.replay.snapshot is not None


@on_sqlite
async def test_an_evacuation_ends_in_time(
    replicas: tuple[Replica, Replica], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = replicas
    checkpointer = with_checkpoints(first, folder, evacuation_s=0.2)
    first.engine.allowed = 2
    await first.created()
    (log,) = first.responses.logs.values()
    await until(lambda: log.num_committed == 2)
    log.num_committed = -1000  # as if the database were away
    async with asyncio.timeout(60):  # the log would never be committed
        await checkpointer.evacuate()
    assert "see --evacuate-seconds" in caplog.text


@on_sqlite
async def test_a_folder_that_cannot_be_written_costs_the_checkpoints_only(
    replicas: tuple[Replica, Replica], address: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = replicas
    make_file(folder)
    checkpointer = with_checkpoints(first, folder)
    with_checkpoints(second, folder)
    first.engine.allowed = 4
    made = await first.created()
    await num_tokens_logged(first, address, 4)
    await checkpointer._look()
    await checkpointer._look()
    assert caplog.text.count("checkpoints cannot be written") == 1
    assert first.responses.stats.checkpoint_errors == 2
    await first.dies()
    expire_leases(address)
    await second.adopter.look()
    assert text_of(await second.ended(made["id"])) == LETTERS[:10]


@on_sqlite
async def test_files_that_nobody_needs_are_swept(replicas: tuple[Replica, Replica], folder: Path) -> None:
    first, _ = replicas
    with_checkpoints(first, folder)
    files = first.responses.files
    assert files is not None
    for name in ("a.checkpoint", "b.checkpoint", ".new-c", "theirs"):
        make_file(folder / name)
    await files.sweep(["a"])
    make_file(folder / "new.checkpoint")
    assert len(files_in(folder)) == 5
    await files.sweep(["a"])
    assert {path.name for path in files_in(folder)} == {"a.checkpoint", "new.checkpoint", "theirs"}


async def test_a_stream_is_followed_while_it_changes_its_replica(
    replicas: tuple[Replica, Replica], address: str
) -> None:
    """A client of each replica gets every event once, and in order."""
    first, second = replicas
    first.engine.allowed = 3
    creating = asyncio.create_task(first.created(stream=True, max_output_tokens=20))
    await num_tokens_logged(first, address, 3)
    with database_of(address) as database:
        ((name,),) = database.run_now(lambda each: each.rows("SELECT id FROM roost_responses"))
    followers = [asyncio.create_task(each.events(name)) for each in replicas]
    await asyncio.sleep(0.3)
    await first.dies()
    expire_leases(address)
    await second.adopter.look()
    events = [await follower for follower in followers]
    assert events[0] == events[1]
    assert [event["sequence_number"] for event in events[0]] == list(range(len(events[0])))
    assert "".join(event.get("delta", "") for event in events[0]) == LETTERS[:20]
    await creating


async def test_a_frozen_owner_writes_nothing_when_it_comes_back(
    replicas: tuple[Replica, Replica], address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = replicas
    first.engine.allowed = 3
    made = await first.created()
    await num_tokens_logged(first, address, 3)
    expire_leases(address)  # it is frozen for as long as that
    await second.adopter.look()
    done = await second.ended(made["id"])
    first.engine.allowed = 1000
    await until(lambda: not first.feature.is_busy)
    assert first.responses.stats.fencing_refusals == 1
    assert "adopted, ended or deleted by another replica" in caplog.text
    assert not first.engine.running
    assert await second.fetched(made["id"]) == done
    assert text_of(done) == LETTERS[:10]


async def test_a_replica_that_claims_its_own_response_stops_it_first(
    replicas: tuple[Replica, Replica], address: str
) -> None:
    """Its lease has ended meanwhile, as on a machine with too much to do."""
    first, _ = replicas
    first.engine.allowed = 3
    made = await first.created()
    await num_tokens_logged(first, address, 3)
    expire_leases(address)
    kind_of(first)._may_claim = True
    await first.adopter.look(renews=False)
    await until(lambda: not first.adopter._open)
    first.engine.allowed = 1000
    await until(lambda: not first.feature.is_busy)
    assert len(first.engine.requests) == 1
    await first.adopter.look()
    assert text_of(await first.ended(made["id"])) == LETTERS[:10]


async def test_an_owner_without_tokens_learns_that_it_lost(replicas: tuple[Replica, Replica], address: str) -> None:
    """Its own look finds it, though it has nothing to write."""
    first, second = replicas
    first.engine.allowed = 2
    made = await first.created()
    await num_tokens_logged(first, address, 2)
    expire_leases(address)
    await second.adopter.look()
    await second.ended(made["id"])
    assert first.engine.running
    await first.adopter.look()
    await until(lambda: not first.engine.running and not first.feature.is_busy)


async def test_a_response_is_cancelled_from_any_replica(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.allowed = 2
    creating = asyncio.create_task(first.created(stream=True))
    await num_tokens_logged(first, address, 2)
    with database_of(address) as database:
        ((name,),) = database.run_now(lambda each: each.rows("SELECT id FROM roost_responses"))
    cancelled = (await second.client.post(f"/v1/responses/{name}/cancel")).json()
    assert (cancelled["id"], cancelled["status"]) == (name, "cancelled")
    await creating
    events = await first.events(name)
    assert (events[-1]["type"], events[-1]["response"]) == ("response.failed", cancelled)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    await first.adopter.look()
    await until(lambda: not first.engine.running)
    assert await first.fetched(name) == cancelled


async def test_a_running_response_is_deleted_from_any_replica(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.allowed = 2
    made = await first.created()
    await num_tokens_logged(first, address, 2)
    assert (await second.client.delete(f"/v1/responses/{made['id']}")).json()["deleted"]
    first.engine.allowed = 1000
    await until(lambda: not first.feature.is_busy)
    assert (await first.client.get(f"/v1/responses/{made['id']}")).status_code == 404


async def test_a_response_whose_engine_died_is_left_to_others(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    first.engine.dies_after = 4
    made = await first.created()
    await until(lambda: not first.feature.is_busy)
    assert (await second.fetched(made["id"]))["status"] == "in_progress"
    await second.adopter.look()
    assert text_of(await second.ended(made["id"])) == LETTERS[:10]


async def test_a_shutdown_leaves_responses_to_others(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.allowed = 4
    made = await first.created()
    await num_tokens_logged(first, address, 4)
    await first.engine.stop()
    first.engine.allowed = 1000
    await first.responses.close()
    await second.adopter.look()
    assert text_of(await second.ended(made["id"])) == LETTERS[:10]


async def test_a_response_that_kills_its_owners_fails(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.dies_after = second.engine.dies_after = 0
    made = await first.created()
    for _ in range(20):
        if (await second.fetched(made["id"]))["status"] != "in_progress":
            break
        await until(lambda: not second.feature.is_busy and not first.feature.is_busy)
        expire_leases(address)
        await second.adopter.look()
    failed = await second.ended(made["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["error"]["message"].startswith("3 replicas died")


async def test_a_full_replica_adopts_nothing(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.allowed, second.engine.allowed = 2, 0
    made = [await first.created() for _ in range(6)]
    await first.dies()
    expire_leases(address)
    for _ in range(3):
        await second.adopter.look()
        await until(lambda: len(second.engine.running) == len(second.responses.leases.held))
    assert len(second.engine.running) == 4, "all slots of the fake engine"
    second.engine.allowed = 1000
    await until(lambda: not second.engine.running)
    await second.adopter.look()
    assert [text_of(await second.ended(each["id"])) for each in made] == [LETTERS[:10]] * 6


@on_sqlite
async def test_lines_of_batches_delay_no_adoption(
    replicas: tuple[Replica, Replica], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = replicas
    first.engine.allowed, second.engine.allowed = 2, 1000
    made = await first.created()
    await first.dies()
    expire_leases(address)
    cache = CacheStats(budget=10**6)
    monkeypatch.setattr(PacedEngine, "stats", EngineStats(slots=4, num_running=4, cache=cache))
    await second.adopter.look()
    assert not second.engine.requests
    stats = EngineStats(slots=4, num_running=4, num_preemptible_running=4, num_preemptible_waiting=3, cache=cache)
    monkeypatch.setattr(PacedEngine, "stats", stats)
    await second.adopter.look()
    assert text_of(await second.ended(made["id"])) == LETTERS[:10]


async def test_tenants_see_their_own_only(address: str, model: ServedModel) -> None:
    opened(address).close()
    access = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))
    async with replica(address, model, access) as first, replica(address, model, access) as second:
        first.engine.allowed = 2
        first.client.headers["authorization"] = "Bearer key-of-alice"
        second.client.headers["authorization"] = "Bearer key-of-bob"
        made = await first.created()
        path = f"/v1/responses/{made['id']}"
        for method, url in (
            ("GET", path),
            ("GET", f"{path}?stream=true"),
            ("GET", f"{path}/input_items"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
        ):
            assert (await second.client.request(method, url)).status_code == 404
        body = {"input": "x", "previous_response_id": made["id"]}
        assert (await second.client.post("/v1/responses", json=body)).status_code == 400
        await num_tokens_logged(first, address, 2)
        await first.dies()
        expire_leases(address)
        await second.adopter.look()
        await until(lambda: second.engine.requests)
        assert second.engine.requests[0].tenant == "alice"
        assert text_of(await first.ended(made["id"])) == LETTERS[:10]
        assert (await second.client.get(path)).status_code == 404


def _away(*_: object) -> None:
    import sqlite3

    raise sqlite3.OperationalError("secret detail")


async def test_engine_error_of_no_database_is_as_before(service: Service, engine: FakeEngine) -> None:
    engine.fails_after, engine.fails_with = 1, EngineDeadError("gone")
    feature = open_responses(Opening(service))
    app = create_app(service, features=features_with(service, feature))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        made = (await client.post("/v1/responses", json={"input": "hi", "background": True})).json()
        await until(lambda: not feature.is_busy)
        assert (await client.get(f"/v1/responses/{made['id']}")).json()["status"] == "failed"


def streaming(replica: Replica, **fields: Any) -> "asyncio.Task[httpx.Response]":
    """A stream in the foreground, which the client reads to its end."""
    body = {"input": "hi", "max_output_tokens": 10, "stream": True, **fields}
    return asyncio.create_task(replica.client.post("/v1/responses", json=body))


async def num_tokens_streamed(replica: Replica, count: int) -> None:
    """Waits until the only stream has so many tokens in its events."""
    await until(lambda: replica.responses.streams)
    (hand_over,) = replica.responses.streams
    stream = getattr(hand_over, "__self__", None)
    assert isinstance(stream, ResumableBuilder)
    await until(lambda: sum(num_tokens for num_tokens, *_ in stream._sizes) == count)


def same(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checked events without what differs between two streams: where deltas part, ids, times, background."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = re.sub(r'"((?:resp|msg)_)[0-9a-f]{32}"', r'"\1"', json.dumps(events))
    text = re.sub(r'"(created_at|completed_at|background|sequence_number)": (\w+)', r'"\1": 0', text)
    found: list[dict[str, Any]] = []
    for event in json.loads(text):
        if found and event["type"] == found[-1]["type"] == "response.output_text.delta":
            found[-1]["delta"] += event["delta"]
            found[-1]["logprobs"] += event["logprobs"]
        else:
            found.append(event)
    return found


STREAMS = pytest.mark.parametrize(
    "fields",
    [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"store": True, "metadata": {"a": "b"}}],
    ids=["plain", "logprobs", "metadata"],
)


@STREAMS
@pytest.mark.parametrize("how", ["without checkpoints", "with checkpoints", "its engine dies"])
async def test_a_stream_that_a_stop_cuts_goes_on_elsewhere(
    replicas: tuple[Replica, Replica], folder: Path, fields: dict[str, Any], how: str
) -> None:
    """Its last event says where. What the client has and what comes there are the events of an undisturbed stream."""
    first, second = replicas
    whole = events_of((await streaming(second, **fields)).text)
    checkpointer = with_checkpoints(first, folder)
    with_checkpoints(second, folder)
    first.engine.allowed = 4
    reading = streaming(first, **fields)
    await num_tokens_streamed(first, 4)
    if how == "with checkpoints":
        await checkpointer.evacuate()
    elif how == "without checkpoints":
        await first.responses.hand_over_streams()
    if how == "its engine dies":
        first.engine.fail(EngineDeadError("gone"))
    else:
        await first.engine.stop()
    first.engine.allowed = 1000
    *got, last = events_of((await reading).text)
    assert (last["type"], last["code"], last["sequence_number"]) == ("error", "stream_moved", len(got) - 1)
    checked(ResponseErrorEvent, last, frozenset({"response_id", "resume"}))
    assert last["response_id"] == got[0]["response"]["id"]
    assert not first.responses.streams
    assert first.responses.stats.handovers == 1
    await second.adopter.look()
    rest = events_of((await second.client.get(last["resume"])).text)
    assert same([*got, *rest]) == same(whole)
    assert await second.events(last["response_id"]) == [*got, *rest]
    ended = await second.ended(last["response_id"])
    assert ended == rest[-1]["response"]
    assert (ended["background"], "inexact" in ended) == (True, False)
    replay = second.engine.requests[-1].replay
    assert replay is not None
    assert len(replay.token_ids) == 4
    assert (replay.snapshot is not None) == (how == "with checkpoints")


@on_sqlite
async def test_a_stream_without_tokens_goes_on_elsewhere(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    first.engine.allowed = 0
    reading = streaming(first)
    await until(lambda: first.responses.streams, 10)
    await first.responses.hand_over_streams()
    await first.engine.stop()
    first.engine.allowed = 1000
    *got, last = events_of((await reading).text)
    await second.adopter.look()
    rest = events_of((await second.client.get(last["resume"])).text)
    assert [event["sequence_number"] for event in (*got, *rest)] == list(range(len(got) + len(rest)))
    assert text_of(rest[-1]["response"]) == LETTERS[:10]


@on_sqlite
async def test_tokens_after_a_hand_over_are_not_sent(replicas: tuple[Replica, Replica]) -> None:
    """They are generated again elsewhere, even if they were the last."""
    first, second = replicas
    first.engine.allowed = 4
    reading = streaming(first)
    await num_tokens_streamed(first, 4)
    await first.responses.hand_over_streams()
    first.engine.allowed = 1000
    *got, last = events_of((await reading).text)
    assert "".join(event.get("delta", "") for event in got) == LETTERS[:4]
    await second.adopter.look()
    rest = events_of((await second.client.get(last["resume"])).text)
    assert "".join(event.get("delta", "") for event in rest) == LETTERS[4:10]


@on_sqlite
async def test_a_moved_stream_is_cancelled_like_any_background_response(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    first.engine.allowed, second.engine.allowed = 4, 0
    reading = streaming(first)
    await num_tokens_streamed(first, 4)
    await first.responses.hand_over_streams()
    await first.engine.stop()
    first.engine.allowed = 1000
    last = events_of((await reading).text)[-1]
    await second.adopter.look()
    cancelled = (await second.client.post(f"/v1/responses/{last['response_id']}/cancel")).json()
    assert cancelled["status"] == "cancelled"
    (event,) = events_of((await second.client.get(last["resume"])).text)
    assert (event["type"], event["response"]) == ("response.failed", cancelled)


@on_sqlite
@pytest.mark.parametrize("fields", [{"store": False}, {"background": True}])
async def test_other_streams_end_as_before(
    replicas: tuple[Replica, Replica], address: str, fields: dict[str, Any]
) -> None:
    first, second = replicas
    first.engine.allowed = 4
    reading = streaming(first, **fields)
    await until(lambda: len(next(iter(first.engine.given.values()), ())) == 4)
    assert not first.responses.streams
    await first.responses.hand_over_streams()
    await first.engine.stop()
    first.engine.allowed = 1000
    await until(lambda: not first.feature.is_busy)
    await second.adopter.look()
    last = events_of((await reading).text)[-1]
    if fields.get("background"):
        assert text_of(last["response"]) == LETTERS[:10]
    else:
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
        assert (await second.client.get(f"/v1/responses/{last['response']['id']}")).status_code == 404


@on_sqlite
async def test_a_stream_that_cannot_be_stored_fails(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = replicas
    for name in ("features.responses.response_store._LAST_S", "storage.objects.REPLY_S"):
        monkeypatch.setattr(f"roost.server.{name}", 0.2)
    first.engine.allowed = 4
    reading = streaming(first)
    await num_tokens_streamed(first, 4)
    monkeypatch.setattr(first.responses.database, "_transact", _away)
    await first.responses.hand_over_streams()
    assert "1 of 1 streams cannot be continued by other replicas" in caplog.text
    await first.engine.stop()
    first.engine.allowed = 1000
    last = events_of((await reading).text)[-1]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    assert "secret" not in json.dumps(last)


@on_sqlite
async def test_a_stream_whose_client_has_left_is_not_continued(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    first.engine.allowed = 4
    async with live(first.service, features=features_with(first.service, first.feature)) as client:
        body = {"input": "hi", "max_output_tokens": 10, "stream": True}
        async with client.stream("POST", "/v1/responses", json=body):
            await num_tokens_streamed(first, 4)
        await until(lambda: not first.responses.streams)
    await first.responses.hand_over_streams()
    await first.engine.stop()
    await second.adopter.look()
    assert not second.engine.requests


# --- faults of the database, and tasks that end early


@pytest.fixture
def faulty(postgresql: PostgresqlServer) -> Iterator[FaultyDatabase]:
    with faulty_database(postgresql) as faulty:
        yield faulty


async def num_errors(replica: Replica, more: int) -> None:
    """Waits until the database has failed so many times more."""
    pool = replica.responses.database._pool
    before = pool.num_errors
    await until(lambda: pool.num_errors >= before + more, 10)


@pytest.mark.parametrize("owner_s", [30.0, 0.3], ids=["owners wait", "owners give up"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_responses_outlast_a_fault_of_the_database(
    faulty: FaultyDatabase,
    model: ServedModel,
    fault: str,
    owner_s: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Requests that store a response get a 503 meanwhile. Adoptions are tried all the time, and cost nothing."""
    monkeypatch.setattr("roost.server.features.responses.response_store._OWNER_S", owner_s)
    monkeypatch.setattr("roost.server.storage.worker.RENEW_S", 0.05)
    monkeypatch.setattr("roost.server.database.group_commit._RETRY_S", 0.02)
    async with replica(faulty.url, model) as first:
        first.adopter.start()
        first.engine.allowed = 2
        made = [await first.created() for _ in range(3)]
        reading = asyncio.create_task(first.created(stream=True))
        await num_tokens_logged(first, faulty.url, 8)
        faulty.make(fault)
        for name in (PROBED, PATIENCE):
            monkeypatch.setattr(name, 0.1)
        patience = "roost.server.storage.objects.REPLY_S"
        monkeypatch.setattr(patience, 0.3)
        first.engine.allowed = 1000
        await num_errors(first, 3)
        body = {"input": "hi", "max_output_tokens": 3}
        if fault != "no privilege for the log":  # which a response in the foreground does not have
            refused = await first.client.post("/v1/responses", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert refused.headers["retry-after"] == "1"
            for how in ("stream", "background"):
                refused = await first.client.post("/v1/responses", json={**body, how: True})
                assert refused.status_code == 503
        if owner_s < 1:
            await until(lambda: not first.feature.is_busy)
            await num_errors(first, 10)
        faulty.mend(fault)
        for name in (patience, PATIENCE):
            monkeypatch.setattr(name, 60.0)
        names = [each["id"] for each in (*made, await reading)]
        done = [await first.ended(name) for name in names]
        assert [text_of(each) for each in done] == [LETTERS[:10]] * 4
        assert {each["status"] for each in done} == {"incomplete"}, "of its number of tokens"
        await until(lambda: not first.responses.logs)
        await until(lambda: first.responses.stats.running == 0)
        assert first.responses.stats.unattended == 0
        num_logged = 1 if fault == "no privilege for the log" else 4  # the others may end without another entry
        num_adopted = num_logged if owner_s < 1 else 0
        assert first.responses.stats.adoptions >= num_adopted
        if owner_s > 1:  # else a slow machine may give up again at the end of the fault
            assert first.responses.stats.adoptions <= 1, "the refused one may have been stored late"
        assert (await first.client.post("/v1/responses", json=body)).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_fault_in_sqlite_is_one_too(
    tmp_path: Path, model: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program overwrites the file, and a copy of it is put back."""
    for name in ("roost.server.storage.objects.REPLY_S", PROBED, PATIENCE):
        monkeypatch.setattr(name, 0.2)
    path = tmp_path / "store.db"
    opened(f"sqlite://{path}").close()
    async with replica(f"sqlite://{path}", model) as first:
        copy = path.read_bytes()
        path.write_bytes(b"something else" * 1000)
        body = {"input": "hi", "max_output_tokens": 3}
        made = await first.client.post("/v1/responses", json=body)
        assert (made.status_code, made.json()["store"]) == (200, False)
        refused = await first.client.post("/v1/responses", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        path.write_bytes(copy)
        for name in ("roost.server.storage.objects.REPLY_S", PATIENCE):
            monkeypatch.setattr(name, 60.0)
        assert (await first.client.post("/v1/responses", json=body)).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("how", ["an error", "cancelled", "cancelled at once"])
async def test_a_lease_ends_with_its_task(
    replicas: tuple[Replica, Replica], address: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends it. The next look gives the lease up, so that another replica need not wait for its end."""
    first, second = replicas
    first.engine.allowed = 2
    made = await first.created()
    if how != "cancelled at once":
        await num_tokens_logged(first, address, 2)
    if how == "an error":
        with monkeypatch.context() as patches:
            for name in ("append_all", "end"):
                patches.setattr(response_table, name, lambda *_: 1 / 0)
            first.engine.allowed = 1000
            await until(lambda: not first.feature.is_busy)
    else:
        await first.dies()
    assert not first.responses.logs
    with database_of(address) as database:
        leases = "SELECT lease_until, owner IS NULL FROM roost_running"
        ((earlier, _),) = database.run_now(lambda each: each.rows(leases))
        first.adopter._kind.places = lambda _: Places(0, 0)  # it leaves the response to the other one
        await first.adopter.look()
        assert first.responses.stats.unattended == 1
        ((now, is_free),) = database.run_now(lambda each: each.rows(leases))
    assert (now < earlier, is_free) == (True, True)
    await second.adopter.look()
    assert text_of(await second.ended(made["id"])) == LETTERS[:10]
    await first.adopter.look()
    assert first.responses.stats.unattended == 0


@on_sqlite
async def test_a_lease_ends_with_its_stream(replicas: tuple[Replica, Replica]) -> None:
    """A client that leaves after the response was handed over leaves it to other replicas at once."""
    first, second = replicas
    first.engine.allowed = 4
    async with live(first.service, features=features_with(first.service, first.feature)) as client:
        body = {"input": "hi", "max_output_tokens": 10, "stream": True}
        async with client.stream("POST", "/v1/responses", json=body):
            await num_tokens_streamed(first, 4)
            await first.responses.hand_over_streams()
            (log,) = first.responses.logs.values()
        await until(lambda: not first.responses.logs)
    first.adopter._kind.places = lambda _: Places(0, 0)
    await first.adopter.look()
    await second.adopter.look()
    assert text_of(await second.ended(log.lease.id)) == LETTERS[:10]


# --- responses that may be what ends their owners, and quotas


def states_of(address: str) -> dict[str, tuple[int, int, int]]:
    """Returns deaths, deaths alone, and whether it runs alone, of each running response."""
    query = "SELECT id, num_deaths, num_lone_deaths, lone_fence = fence FROM roost_running"
    with database_of(address) as database:
        return {
            name: (deaths, alone, is_alone)
            for name, deaths, alone, is_alone in database.run_now(lambda e: e.rows(query))
        }


async def dies_with_all(replica: Replica, address: str) -> None:
    await replica.dies()
    await until(lambda: replica.adopter._lone is None)
    expire_leases(address)


@on_sqlite
async def test_a_suspect_waits_for_lines_of_batches(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.allowed, second.engine.allowed = 2, 1000
    suspect = (await first.created())["id"]
    await num_tokens_logged(first, address, 2)
    await dies_with_all(first, address)
    with database_of(address) as database:
        database.run_now(lambda each: each.execute("UPDATE roost_running SET num_deaths = 1"), writes=True)
    line = PreemptibleAdmission(second.service.admissions)
    await second.adopter.look()
    await until(lambda: second.service.admissions.preemptible.is_barred)
    assert (states_of(address), second.engine.requests) == ({suspect: (2, 0, 0)}, [])
    line.release()
    assert text_of(await second.ended(suspect)) == LETTERS[:10]
    await until(lambda: not second.service.admissions.preemptible.is_barred)


@on_sqlite
async def test_a_suspect_is_alone_for_a_time(
    replicas: tuple[Replica, Replica], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others that have lost two owners do not wait for its end, which may be days away."""
    monkeypatch.setattr("roost.server.features.responses.adoption._FIRST_ALONE_S", 0.01)
    first, second = replicas
    first.engine.allowed, second.engine.allowed = 2, 0
    made = [(await first.created())["id"] for _ in range(3)]
    await num_tokens_logged(first, address, 6)
    await dies_with_all(first, address)
    with database_of(address) as database:
        database.run_now(lambda each: each.execute("UPDATE roost_running SET num_deaths = 1"), writes=True)
    monkeypatch.setattr("roost.server.features.responses.adoption._OTHERS_S", 0.01)
    for count in (1, 2, 3):
        await second.adopter.look()
        await until(lambda count=count: second.adopter._lone is None and len(second.engine.running) == count)
    await second.adopter.look()
    assert second.responses.stats.unattended == 0
    assert len(second.engine.requests) == len(second.responses.logs) == 3, "each was begun once and goes on"
    assert states_of(address) == dict.fromkeys(made, (2, 0, 0))
    assert not second.service.admissions.preemptible.is_barred
    second.engine.allowed = 1000
    assert [text_of(await second.ended(name)) for name in made] == [LETTERS[:10]] * 3


@on_sqlite
async def test_a_grammar_that_the_system_ends_is_continued_elsewhere(
    replicas: tuple[Replica, Replica], address: str
) -> None:
    """It counts as a death, or a grammar for which there is never enough memory would be adopted for ever."""
    first, second = replicas
    first.engine.fails_after, first.engine.fails_with = 4, ConstraintLostError("killed")
    first.engine.allowed, second.engine.allowed = 1000, 2
    made = await first.created()
    await until(lambda: not first.feature.is_busy)
    await second.adopter.look()
    await until(lambda: second.engine.running)
    assert states_of(address) == {made["id"]: (1, 0, 0)}
    second.engine.allowed = 1000
    assert text_of(await second.ended(made["id"])) == LETTERS[:10]


@on_sqlite
async def test_a_stop_is_no_death(replicas: tuple[Replica, Replica], address: str) -> None:
    first, second = replicas
    first.engine.allowed = 4
    made = await first.created()
    await num_tokens_logged(first, address, 4)
    await first.engine.stop()
    first.engine.allowed = 1000
    await until(lambda: not first.feature.is_busy)
    assert states_of(address) == {made["id"]: (0, 0, 0)}
    second.engine.dies_after = 0
    await second.adopter.look()
    await until(lambda: states_of(address) == {made["id"]: (1, 0, 0)})


@on_sqlite
async def test_running_responses_have_a_quota(
    address: str, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(address).close()
    room = "roost.server.features.responses.response_table"
    access = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))
    async with replica(address, model, access) as first:
        first.engine.allowed = 2
        first.client.headers["authorization"] = "Bearer key-of-alice"
        body = {"input": "hi", "max_output_tokens": 10, "background": True}
        for name, value, text in (
            ("MAX_RUNNING", 2, "its limit of 2 running background responses"),
            ("max_bytes", 1500, "and 0 MiB of them"),  # room for one
        ):
            made = [await first.created() for _ in range(2 if name == "MAX_RUNNING" else 1)]
            with monkeypatch.context() as patches:
                if name == "MAX_RUNNING":
                    patches.setattr(f"{room}.{name}", value)
                else:
                    patches.setattr(first.responses, "bounds", Bounds(max_bytes=value))
                refused = await first.client.post("/v1/responses", json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
                assert text in refused.json()["error"]["message"]
                other = {"authorization": "Bearer key-of-bob"}
                if name == "MAX_RUNNING":
                    assert (await first.client.post("/v1/responses", json=body, headers=other)).status_code == 200
                foreground = await first.client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 1})
                assert foreground.status_code == 200
                first.engine.allowed = 1000
                for each in made:
                    await first.ended(each["id"])
                assert (await first.client.post("/v1/responses", json=body)).status_code == 200
                await until(lambda: not first.feature.is_busy)
            first.engine.allowed = 2
