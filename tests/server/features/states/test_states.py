"""`/v1/states`: who may see what, what is said of it, and how requests go on from it."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import httpx
import pytest
from fake_engine import STATE_FORMAT, FakeEngine, snapshot_of
from fake_server import client_of, until
from roost.engine import CacheStats, EngineStats, SavedState, SavedStateFormat
from roost.server.app import create_app
from roost.server.generation.admission import Admissions
from roost.server.generation.service import Service
from roost.server.generation.state_store import StateStore
from roost.server.http.auth import Access, ApiKeys
from roost.server.text.tokenizer import Tokenizer
from unpacked_states import saved_state

LONG = [5 + i % 20 for i in range(150)]
WHOLE = (*LONG, 15, 16)
"""Prompt and the two tokens of the response."""

FILE = STATE_FORMAT.export(saved_state((5, 6)))


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "stats", EngineStats(slots=4, cache=CacheStats(budget=10**6)))


async def say(client: httpx.AsyncClient, token_ids: list[int], **fields: Any) -> Any:
    response = await client.post("/generate", json={"token_ids": token_ids, "max_tokens": 2, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def save(client: httpx.AsyncClient, token_ids: list[int] = LONG, **fields: Any) -> Any:
    answer = await say(client, token_ids, **fields)
    response = await client.post("/v1/states", json={"request_id": answer["id"]})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_state_is_kept_told_and_forgotten(client: httpx.AsyncClient) -> None:
    state = await save(client)
    assert (state["object"], state["tokens"], state["read_tokens"]) == ("state", 152, 128)
    assert (await client.get(f"/v1/states/{state['id']}")).json() == state, "token ids are no chat"
    listed = {"object": "list", "data": [state], "first_id": state["id"], "last_id": state["id"], "has_more": False}
    assert (await client.get("/v1/states")).json() == listed
    deleted = (await client.delete(f"/v1/states/{state['id']}")).json()
    assert deleted == {"id": state["id"], "object": "state", "deleted": True}
    for response in (
        await client.get(f"/v1/states/{state['id']}"),
        await client.delete(f"/v1/states/{state['id']}"),
        await client.get(f"/v1/states/{state['id']}/export"),
        await client.post("/v1/states", json={"request_id": "gen-unknown"}),
    ):
        assert response.status_code == 404, response.text
    response = await client.post("/generate", json={"token_ids": [7], "from_state": state["id"]})
    assert (response.status_code, response.json()["error"]["param"]) == (404, "from_state")


async def test_requests_go_on_from_a_state(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Any number of requests continue it by either path, with the salt of its request; BOS comes once."""
    state = await save(client, cache_salt="mine")
    answer = await say(client, [7, 9], from_state=state["id"], n=3)
    assert answer["usage"]["prompt_tokens"] == 154
    body = {"prompt": "ab", "from_state": state["id"], "max_tokens": 1}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    first, *forks, completion = engine.requests
    assert len(forks) == 3
    for request in forks:
        assert tuple(request.prompt_token_ids) == (*WHOLE, 7, 9)
        assert request.state is not None
        assert request.state.length == 128
        assert request.cache_salt == first.cache_salt
    assert tuple(completion.prompt_token_ids) == (*WHOLE, 4, 5)


async def chatted(client: httpx.AsyncClient, **fields: Any) -> Any:
    response = await client.post("/v1/chat/completions", json={"max_tokens": 4, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_chat_goes_on_from_a_state(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Its messages are those after the state, and the prompt is the whole conversation's, with cut replies too."""
    engine.says = [4, 5]
    asked, more = {"role": "user", "content": "hi " * 60}, {"role": "user", "content": "more"}
    for max_tokens in (4, 2):  # with an end token, and cut before it
        answer = await chatted(client, messages=[asked], max_tokens=max_tokens)
        state = (await client.post("/v1/states", json={"request_id": answer["id"]})).json()
        await chatted(client, messages=[asked, answer["choices"][0]["message"], more])
        second = await chatted(client, messages=[more], from_state=state["id"])
        whole, request = engine.requests[-2:]
        assert request.prompt_token_ids == whole.prompt_token_ids
        assert request.state is not None
        assert second["usage"]["prompt_tokens"] == len(whole.prompt_token_ids)
        await chatted(client, messages=[more], from_state=state["id"], truncate_prompt_tokens=3)
        assert list(engine.requests[-1].prompt_token_ids[-4:-3]) == [5], "all of the state, and three new tokens"


async def test_the_messages_of_a_chat_come_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Those of a state by its id and of an imported file, not in lists."""
    engine.says = [4, 5]
    asked = {"role": "user", "content": "hi " * 60}
    answer = await chatted(client, messages=[asked])
    reply = {key: answer["choices"][0]["message"][key] for key in ("role", "content")}
    state = (await client.post("/v1/states", json={"request_id": answer["id"]})).json()
    file = (await client.get(f"/v1/states/{state['id']}/export")).content
    messages = [{**asked, "content": asked["content"].strip()}, reply]
    assert (await client.get(f"/v1/states/{state['id']}")).json() == {**state, "messages": messages}
    assert (await client.post("/v1/states/import", content=file)).json()["messages"] == messages
    listed = (await client.get("/v1/states")).json()["data"]
    assert not any("messages" in each for each in [state, *listed])


async def test_a_rendered_chat_has_the_tokens_of_its_state(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    state = await save(client)
    body = {"messages": [{"role": "user", "content": "more"}], "from_state": state["id"], "max_tokens": 1}
    rendered = (await client.post("/v1/chat/completions/render", json=body)).json()
    await chatted(client, **body)
    assert rendered["token_ids"] == list(engine.requests[-1].prompt_token_ids)


async def test_rendered_completions_have_the_tokens_of_their_state(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    state = await save(client)
    body = {"prompt": [[7, 8, 9], [6, 7]], "from_state": state["id"], "truncate_prompt_tokens": 2, "max_tokens": 1}
    rendered = (await client.post("/v1/completions/render", json=body)).json()
    assert [prompt["token_ids"] for prompt in rendered] == [[*WHOLE, 8, 9], [*WHOLE, 6, 7]]
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert [list(request.prompt_token_ids) for request in engine.requests[-2:]] == [
        prompt["token_ids"] for prompt in rendered
    ]
    text = (await client.post("/v1/completions/render", json={"prompt": "ab", "from_state": state["id"]})).json()
    assert text[0]["token_ids"] == [*WHOLE, 4, 5], "BOS comes once"
    unknown = await client.post("/v1/completions/render", json={**body, "from_state": "state_0"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "from_state")


async def test_results_of_calls_go_on_from_a_state(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The calls and the introduction of the tools are in the state."""
    state = await save(client)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "b"}
    await chatted(client, messages=[result], from_state=state["id"], tools=tools, tool_choice="auto")
    introduced = len(engine.requests[-1].prompt_token_ids)
    await chatted(client, messages=[result], from_state=state["id"])
    assert introduced == len(engine.requests[-1].prompt_token_ids)


async def test_what_cannot_follow_a_state_is_refused(client: httpx.AsyncClient) -> None:
    state = await save(client)
    for messages, from_state, param in (
        ([{"role": "assistant", "content": "a"}], state["id"], "messages"),
        ([{"role": "tool", "content": "a"}], state["id"], "messages"),
        ([{"role": "user", "content": "a"}], "state_x", "from_state"),
    ):
        body = {"messages": messages, "from_state": from_state, "max_tokens": 1}
        response = await client.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (
            404 if param == "from_state" else 400,
            param,
        )


async def test_a_file_goes_from_server_to_server(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    state = await save(client)
    file = await client.get(f"/v1/states/{state['id']}/export")
    assert file.headers["content-disposition"] == f'attachment; filename="{state["id"]}.safetensors"'
    response = await client.post("/v1/states/import", content=file.content)
    imported = response.json()
    assert {**imported, "id": 0, "created": 0, "bytes": 0} == {**state, "id": 0, "created": 0, "bytes": 0}
    await say(client, [7], from_state=imported["id"])
    assert tuple(engine.requests[-1].prompt_token_ids) == (*WHOLE, 7)
    assert engine.requests[-1].cache_salt != engine.requests[0].cache_salt, "its continuations are not shared"
    assert imported["id"] not in engine.requests[-1].cache_salt, "whose salt no client can name"


async def test_what_came_from_a_file_is_known_as_such(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """States that continue an imported one stay marked, so that their errors are not taken for the model's."""
    own = await save(client)
    file = await client.get(f"/v1/states/{own['id']}/export")
    state = (await client.post("/v1/states/import", content=file.content)).json()
    await say(client, [7], from_state=own["id"])
    for _ in range(2):
        state = await save(client, [7], from_state=state["id"])
    assert [request.state_is_imported for request in engine.requests] == [False, False, True, True]
    assert len({request.cache_salt for request in engine.requests[2:]}) == 1


async def import_file(client: httpx.AsyncClient, file: bytes, **params: str) -> Any:
    response = await client.post("/v1/states/import", content=file, params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def test_prompts_find_an_imported_state(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The longest that they begin with and the newest of these, by every path, until it is deleted."""
    short, long, again = [
        await import_file(client, STATE_FORMAT.export(saved_state(tokens, snapshot_of(tokens))))
        for tokens in (WHOLE[:70], WHOLE, WHOLE)
    ]

    async def found(token_ids: Sequence[int]) -> tuple[int, str]:
        await say(client, list(token_ids))
        request = engine.requests[-1]
        assert request.state_is_imported == (request.state is not None)
        return 0 if request.state is None else request.state.length, request.cache_salt

    first, salt = await found(WHOLE)
    assert (first, await found([*WHOLE[:130], 7])) == (128, (128, salt))
    assert (await found(WHOLE[:128]))[0] == 64, "one token at least is read"
    assert await found([6, *WHOLE]) == (0, "")
    await client.delete(f"/v1/states/{again['id']}")
    assert (await found(WHOLE))[0] == 128
    assert engine.requests[-1].cache_salt != salt
    await client.delete(f"/v1/states/{long['id']}")
    assert (await found(WHOLE))[0] == 64
    await client.delete(f"/v1/states/{short['id']}")
    assert await found(WHOLE) == (0, "")


async def test_a_chat_is_moved_by_its_file(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """The plain chat with the whole conversation restores what was imported."""
    engine.says = [4, 5]
    messages = [{"role": "user", "content": "hi " * 60}]
    answer = await chatted(client, messages=messages)
    state = (await client.post("/v1/states", json={"request_id": answer["id"]})).json()
    file = (await client.get(f"/v1/states/{state['id']}/export")).content
    await client.delete(f"/v1/states/{state['id']}")
    await import_file(client, file)
    await chatted(client, messages=[*messages, answer["choices"][0]["message"], {"role": "user", "content": "more"}])
    request = engine.requests[-1]
    assert request.state is not None
    assert request.state.length == state["read_tokens"] > 0


async def test_only_its_tenant_and_salt_find_an_imported_state(by_key: httpx.AsyncClient, engine: FakeEngine) -> None:
    """A forged file changes nobody else's answers, nor those with another salt; what it led to stays apart."""
    await import_file(by_key, STATE_FORMAT.export(saved_state(WHOLE, snapshot_of(WHOLE))), cache_salt="mine")
    await say(by_key, list(WHOLE), cache_salt="mine")
    await say(by_key, list(WHOLE))
    by_key.headers["x-api-key"] = "22"
    await say(by_key, list(WHOLE), cache_salt="mine")
    salts = [request.cache_salt for request in engine.requests]
    assert salts[0].startswith("import-")
    assert salts[1:] == ["", "mine"]
    assert [request.state is None for request in engine.requests] == [False, True, True]
    assert engine.inserted == []


async def test_unsigned_files_answer_no_plain_prompts_where_clients_share_no_key(
    service: Service, engine: FakeEngine
) -> None:
    """Anybody could forge one for the prompts of somebody else. A `cache_salt` is known to whoever chose it."""
    file = STATE_FORMAT.export(saved_state(WHOLE, snapshot_of(WHOLE)))
    async with client_of(create_app(replace(service, is_shared_without_keys=True))) as client:
        state = await import_file(client, file)
        await import_file(client, file, cache_salt="mine")
        for fields in ({}, {"cache_salt": "other"}, {"cache_salt": "mine"}):
            await say(client, list(WHOLE), **fields)
        await say(client, [7], from_state=state["id"])
    assert [request.state is not None for request in engine.requests] == [False, False, True, True]


async def test_the_shared_cache_takes_what_the_key_vouches_for(
    service: Service, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the signed files of the same engine, as others' states may have other bits."""
    kind, state = replace(STATE_FORMAT, engine="cpu"), saved_state(WHOLE, snapshot_of(WHOLE))
    monkeypatch.setattr(FakeEngine, "state_format", kind)
    service = replace(service, state_key=b"sesame", salt_by_key=True)
    async with clients(service) as client:
        await import_file(client, replace(kind, engine="gpu").export(state, b"sesame"))
        assert engine.inserted == []
        await import_file(client, kind.export(state, b"sesame"), cache_salt="mine")
        (inserted,) = engine.inserted
        assert (inserted.salt, inserted.tokens) == ("one\nmine", state.tokens)
        await say(client, list(WHOLE), cache_salt="mine")
    request = engine.requests[-1]
    assert (request.cache_salt, request.state_is_imported) == ("one\nmine", False)
    assert request.state is not None


@pytest.fixture
async def small(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Takes bodies of 1,000 bytes."""
    transport = httpx.ASGITransport(create_app(replace(service, admissions=Admissions(1000))))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


async def test_a_file_may_be_larger_than_a_request(small: httpx.AsyncClient) -> None:
    state = await save(small)
    file = (await small.get(f"/v1/states/{state['id']}/export")).content
    assert len(file) > 2000, "more than the small server takes of anything else"
    assert (await small.post("/v1/states/import", content=file)).json()["tokens"] == 152
    assert (await small.post("/v1/completions", content=file)).status_code == 413


async def test_a_file_is_not_read_beyond_what_a_state_can_have(small: httpx.AsyncClient) -> None:
    limit, piece, sent = STATE_FORMAT.max_file_bytes, 2**20, 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += piece
            yield bytes(piece)

    for content in (endless(), bytes(limit + 1)):
        response = await small.post("/v1/states/import", content=content)
        assert response.status_code == 413
        assert response.json()["error"]["message"] == f"the body is larger than {limit} bytes"
    assert limit < sent <= limit + piece
    assert (await small.post("/v1/states/import", content=bytes(limit))).status_code == 400, "read, and no state"


async def test_files_on_their_way_are_charged_like_requests(service: Service) -> None:
    """A slow sender holds what it has sent, and an unread file is held until its client has it."""
    room = STATE_FORMAT.max_file_bytes
    service = replace(service, states=StateStore(), admissions=Admissions(1000, max_kept_bytes=room))
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(room // 2)
        arrived.set()
        await go_on.wait()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://roost") as client:
        sender = asyncio.create_task(client.post("/v1/states/import", content=slow()))
        await arrived.wait()
        assert (await client.post("/v1/states/import", content=FILE)).status_code == 200
        stored = service.states.keep(saved_state((5,) * (room // 8)), "", 2**30)
        response = await client.post("/v1/states/import", content=bytes(room))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert (await client.get(f"/v1/states/{stored.id}/export")).status_code == 503
        go_on.set()
        assert (await sender).status_code == 400, "no state"
        assert (await client.get(f"/v1/states/{stored.id}/export")).status_code == 200


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"nonsense", "the file is no whole state file"),
        (replace(STATE_FORMAT, model="other").export(saved_state((5, 6))), "the file is of another model (other; "),
    ],
)
async def test_files_that_are_refused(client: httpx.AsyncClient, file: bytes, message: str) -> None:
    response = await client.post("/v1/states/import", content=file)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


class NotingFormat(SavedStateFormat):
    """Notes on which threads files are made and checked."""

    threads: ClassVar[list[threading.Thread]] = []

    def export(self, state: SavedState, key: bytes | None = None) -> bytes:
        self.threads.append(threading.current_thread())
        return super().export(state, key)

    def load(self, data: bytes, key: bytes | None = None) -> SavedState:
        self.threads.append(threading.current_thread())
        return super().load(data, key)


async def test_files_are_made_and_checked_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {field.name: getattr(STATE_FORMAT, field.name) for field in dataclasses.fields(STATE_FORMAT)}
    noting = NotingFormat(**fields)
    monkeypatch.setattr(FakeEngine, "state_format", noting)
    state = await save(client)
    file = (await client.get(f"/v1/states/{state['id']}/export")).content
    assert (await client.post("/v1/states/import", content=file)).status_code == 200
    assert len(noting.threads) == 2
    assert threading.current_thread() not in noting.threads


async def test_with_a_key_only_signed_files_are_taken(service: Service) -> None:
    service = replace(service, state_key=b"sesame")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://roost") as client:
        state = await save(client)
        signed = (await client.get(f"/v1/states/{state['id']}/export")).content
        assert (await client.post("/v1/states/import", content=signed)).status_code == 200
        for file in (STATE_FORMAT.export(saved_state((5, 6))), STATE_FORMAT.export(saved_state((5, 6)), b"other")):
            response = await client.post("/v1/states/import", content=file)
            assert response.status_code == 400
            assert "sign" in response.json()["error"]["message"]


async def test_there_is_an_end_to_room(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save(client)
    stats = EngineStats(slots=4, cache=CacheStats(budget=5000))
    monkeypatch.setattr(FakeEngine, "stats", stats)
    answer = await say(client, LONG)
    response = await client.post("/v1/states", json={"request_id": answer["id"]})
    assert (response.status_code, response.json()["error"]["type"]) == (507, "server_error")
    assert "delete one" in response.json()["error"]["message"]


@asynccontextmanager
async def clients(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with two keys; without a header it uses the first."""
    transport = httpx.ASGITransport(create_app(service, Access(ApiKeys(["one:11", "two:22"]))))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost", headers={"x-api-key": "11"}) as client:
        yield client


@pytest.fixture
async def by_key(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with clients(service) as client:
        yield client


async def test_keys_do_not_see_each_others_states(by_key: httpx.AsyncClient) -> None:
    answer = await say(by_key, LONG)
    state = (await by_key.post("/v1/states", json={"request_id": answer["id"]})).json()
    by_key.headers["x-api-key"] = "22"
    assert (await by_key.get("/v1/states")).json()["data"] == []
    assert (await by_key.get(f"/v1/states/{state['id']}")).status_code == 404
    assert (await by_key.post("/v1/states", json={"request_id": answer["id"]})).status_code == 404


async def test_a_list_comes_in_pages(client: httpx.AsyncClient) -> None:
    ids = [(await save(client))["id"] for _ in range(5)]

    async def listed(**params: Any) -> tuple[list[str], bool]:
        response = await client.get("/v1/states", params=params)
        assert response.status_code == 200, response.text
        body = response.json()
        found = [state["id"] for state in body["data"]]
        assert (body["first_id"], body["last_id"]) == ((found[0], found[-1]) if found else ("", ""))
        return found, body["has_more"]

    assert await listed() == (ids[::-1], False)
    assert await listed(limit=2) == ([ids[4], ids[3]], True)
    assert await listed(limit=2, after=ids[3]) == ([ids[2], ids[1]], True)
    assert await listed(limit=2, after=ids[1]) == ([ids[0]], False)
    assert await listed(order="asc", limit=3, after=ids[0]) == (ids[1:4], True)
    assert await listed(after=ids[0]) == ([], False)
    for params in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "state_unknown"}):
        response = await client.get("/v1/states", params=params)
        assert response.status_code == 400
        assert response.json()["error"]["param"] in (*params, None)


async def of_state(client: httpx.AsyncClient, engine: FakeEngine, request_id: str, index: int = 0) -> tuple[int, ...]:
    """The token history of the state of a choice: what a request that goes on from it begins with."""
    response = await client.post("/v1/states", json={"request_id": request_id, "index": index})
    assert response.status_code == 200, response.text
    await say(client, [500], from_state=response.json()["id"])
    assert response.json()["tokens"] == len(engine.requests[-1].prompt_token_ids) - 1
    return tuple(engine.requests[-1].prompt_token_ids[:-1])


async def test_the_state_of_a_choice_is_the_one_that_the_client_saw(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Two prompts have five candidates each, of which the two with the lowest ids are the most likely."""
    ids = [90, 40, 70, 50, 60, 45, 80, 95, 42, 77]
    engine.says_by_index = {number: [first, 30 + number] for number, first in enumerate(ids)}
    body = {"prompt": [[7], [9]], "n": 2, "best_of": 5, "max_tokens": 2, "return_token_ids": True}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert [choice["token_ids"] for choice in answer["choices"]] == [[40, 31], [50, 33], [45, 35], [42, 38]]
    for choice in answer["choices"]:
        prompt = (7,) if choice["index"] < 2 else (9,)
        history = await of_state(client, engine, answer["id"], choice["index"])
        assert history == (*prompt, *choice["token_ids"])
    response = await client.post("/v1/states", json={"request_id": answer["id"], "index": 4})
    assert response.status_code == 404


def token_of(tokenizer: Tokenizer, text: str) -> int:
    return next(each for each in range(tokenizer.vocab_size) if tokenizer.token_bytes(each) == text.encode())


def chat_answer(response: httpx.Response, *, stream: bool) -> tuple[str, str]:
    """Id and text."""
    if not stream:
        answer = response.json()
        return answer["id"], answer["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    return events[0]["id"], "".join(event["choices"][0]["delta"].get("content", "") for event in events)


@pytest.mark.parametrize(
    ("says", "stop", "text", "num_kept"),
    [
        ("abcdef", ["d"], "abc", 3),
        ("abcdef", ["cde"], "ab", 2),
        (["he", "li", "fa"], ["i"], "hel", 1),
        (["he", "li", "fa"], ["el"], "h", 0),
        (["he", "li", "fa"], ["x", "if", "a"], "hel", 1),
        (["he", "li", "fa"], ["lifa", "fax"], "he", 1),
        ("abcdef", ["x"], "abcdef", 7),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_state_of_an_answer_that_a_stop_string_ended(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    tokenizer: Tokenizer,
    says: list[str] | str,
    stop: list[str],
    text: str,
    num_kept: int,
    stream: bool,
) -> None:
    """It holds the tokens whose text was sent whole; and the token that ended it, if it was a token."""
    engine.says = [token_of(tokenizer, piece) for piece in says]
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "stop": stop}
    response = await client.post("/v1/chat/completions", json={**body, "stream": stream})
    answer_id, got = chat_answer(response, stream=stream)
    assert got == text
    prompt = engine.requests[-1].prompt_token_ids
    ended = (*engine.says, *engine.requests[-1].params.end_token_ids[:1])
    engine.says = ()
    assert await of_state(client, engine, answer_id) == (*prompt, *ended[:num_kept])


async def test_a_stop_string_that_is_shown_is_a_part_of_the_state(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = {"prompt": "a", "max_tokens": 9, "stop": "de", "include_stop_str_in_output": True}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "bcde"
    assert await of_state(client, engine, answer["id"]) == (2, 4, 5, 6, 7, 8)


async def test_the_state_of_ids_is_all_that_were_sent(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await say(client, [7], max_tokens=9, stop="kl")
    (choice,) = answer["choices"]
    assert choice["stop_reason"] == "kl"
    assert await of_state(client, engine, answer["id"]) == (7, *choice["token_ids"])


async def test_a_tenant_saves_one_state_at_a_time(service: Service, engine: FakeEngine) -> None:
    """Another tenant then waits for few steps, however many states the first one saves."""
    async with clients(service) as client:
        answer = await say(client, LONG)
        engine.gate.clear()
        body = {"request_id": answer["id"]}
        many = [asyncio.create_task(client.post("/v1/states", json=body)) for _ in range(20)]
        await until(lambda: engine.num_saving)
        for _ in range(100):
            await asyncio.sleep(0)
        assert engine.num_saving == 1
        engine.gate.set()
        assert {(await task).status_code for task in many} <= {200, 507}


async def test_a_history_beyond_the_limit_is_neither_saved_nor_imported(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is 2^20 tokens; a lower one stands for it."""
    for module in ("roost.server.generation.service", "roost.engine.types.snapshot"):
        monkeypatch.setattr(f"{module}.MAX_TOKENS", len(WHOLE) - 1)
    answer = await say(client, LONG)
    for path, body, message in (
        ("/v1/states", {"json": {"request_id": answer["id"]}}, "a state may have 151 tokens, not 152"),
        ("/v1/states/import", {"content": STATE_FORMAT.export(saved_state(WHOLE))}, "holds 152 tokens, more than 151"),
    ):
        response = await client.post(path, **body)
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]


async def test_a_small_request_does_not_ask_for_a_long_history_many_times(service: Service) -> None:
    states = StateStore()
    stored = states.keep(saved_state((5,) * 2**19), "", 2**30)
    service = replace(service, states=states)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://roost") as client:
        body = {"from_state": stored.id, "max_tokens": 1}
        response = await client.post("/v1/completions", json={**body, "prompt": ["a"] * 3})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt"
        assert (await client.post("/v1/completions", json={**body, "prompt": ["a"] * 2})).status_code == 200
