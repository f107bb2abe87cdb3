"""`/v1/responses`: its objects and events, and what the server remembers."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from client_types import checked, events
from fake_engine import FakeEngine
from fake_server import live, make_service, until
from openai.types.responses import InputTokenCountResponse, Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from roost.server.generation.prompts import Prompt
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.text.chat_format import Conversation, ConversationMessage
from roost.server.text.served_model import ServedModel
from unpacked_states import saved_state

LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


async def create(client: httpx.AsyncClient, said: Any = "hi", **fields: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"input": said, "max_output_tokens": 3, **fields})


async def created(client: httpx.AsyncClient, said: Any = "hi", **fields: Any) -> Response:
    response = await create(client, said, **fields)
    assert response.status_code == 200, response.text
    return checked(Response, response.text)


async def ended(client: httpx.AsyncClient, response_id: str) -> Response:
    """A background response, once nobody works on it any more."""
    async with asyncio.timeout(60):
        while (text := (await client.get(f"/v1/responses/{response_id}")).text) and '"in_progress"' in text:
            await asyncio.sleep(0.005)
    return checked(Response, text)


async def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


async def test_a_large_number_comes_back_as_it_was(client: httpx.AsyncClient) -> None:
    text = {"format": {"type": "text", "extra": 10**40}}
    for stream in (False, True):
        response = await client.post("/v1/responses", json={"input": "a", "text": text, "stream": stream})
        assert response.status_code == 200
        assert str(10**40) in response.text


async def test_a_whole_response(client: httpx.AsyncClient) -> None:
    response = await created(client, metadata={"a": "b"}, temperature=0.5, truncation="auto", user="me")
    assert response.id.startswith("resp_")
    assert response.output_text == "ABC"
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert (response.metadata, response.temperature, response.user) == ({"a": "b"}, 0.5, "me")
    assert (response.truncation, response.top_p, response.max_output_tokens) == ("auto", 1, 3)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (14, 3, 17)


async def test_a_response_that_ends_by_itself_is_completed(client: httpx.AsyncClient) -> None:
    response = await created(client, max_output_tokens=None)
    assert (response.status, response.incomplete_details, response.max_output_tokens) == ("completed", None, None)
    assert response.completed_at is not None


async def test_the_events_of_a_stream(client: httpx.AsyncClient) -> None:
    got = events((await create(client, stream=True)).text)
    parsed = [checked(ResponseStreamEvent, event) for _, event in got]
    assert [name for name, _ in got] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in parsed] == list(range(11))
    assert "".join(event["delta"] for name, event in got if name.endswith("delta")) == "ABC"
    last = checked(Response, got[-1][1]["response"])
    assert last.output_text == "ABC"
    assert got[0][1]["response"]["id"] == last.id
    item_ids = {event["item_id"] for _, event in got if "item_id" in event}
    assert item_ids == {last.output[0].id}


async def test_a_stream_that_ends_by_itself_is_completed(client: httpx.AsyncClient) -> None:
    got = events((await create(client, stream=True, max_output_tokens=None)).text)
    assert got[-1][0] == "response.completed"


async def test_logprobs_whole_and_streamed(client: httpx.AsyncClient) -> None:
    response = await created(client, max_output_tokens=1, **LOGPROBS)
    part = response.output[0].content[0]
    (entry,) = part.logprobs
    assert (entry.token, entry.logprob, entry.bytes) == ("A", -10.9, [65])
    assert [(top.token, top.logprob) for top in entry.top_logprobs] == [("A", -10.9), ("B", -11.9)]
    got = events((await create(client, stream=True, **LOGPROBS)).text)
    for _, event in got:
        checked(ResponseStreamEvent, event, ours=frozenset({"bytes"}))
    deltas = [entry for name, event in got if name.endswith("delta") for entry in event["logprobs"]]
    (done,) = [event for name, event in got if name == "response.output_text.done"]
    assert deltas == done["logprobs"] == got[-1][1]["response"]["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in deltas] == ["A", "B", "C"]


async def test_input_may_be_items_and_instructions_come_first(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    items = [
        {"role": "user", "content": "one"},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "two", "annotations": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "three"}]},
    ]
    await created(client, items, instructions="be short")
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    await client.post("/v1/chat/completions", json={"messages": chat, "max_tokens": 1})
    first, second = engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids


async def test_a_response_goes_on_from_another(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Instructions are not passed on."""
    first = await created(client, "one", instructions="be short")
    second = await created(client, "two", previous_response_id=first.id)
    third = await created(client, "three", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    chat = [
        {"role": role, "content": text}
        for role, text in (
            ("user", "one"),
            ("assistant", first.output_text),
            ("user", "two"),
            ("assistant", second.output_text),
            ("user", "three"),
        )
    ]
    await client.post("/v1/chat/completions", json={"messages": chat, "max_tokens": 1})
    assert engine.requests[-1].prompt_token_ids == engine.requests[-2].prompt_token_ids


async def test_a_response_goes_on_from_a_state(client: httpx.AsyncClient, service: Service, engine: FakeEngine) -> None:
    """So do those after it; the input is what follows the state."""
    history = await service.prompts.chat(Conversation([ConversationMessage("user", "a")]))
    state = service.states.keep(saved_state([*history.token_ids, 4, 5]), "", 10**6)
    first = await created(client, "one", from_state=state.id)
    await created(client, "two", previous_response_id=first.id)
    chat = [
        {"role": role, "content": text}
        for role, text in (
            *(("user", "a"), ("assistant", "ab"), ("user", "one")),
            *(("assistant", first.output_text), ("user", "two")),
        )
    ]
    await client.post("/v1/chat/completions", json={"messages": chat, "max_tokens": 1})
    assert engine.requests[-1].prompt_token_ids == engine.requests[-2].prompt_token_ids
    items = (await client.get(f"/v1/responses/{first.id}/input_items")).json()["data"]
    assert [item["content"][0]["text"] for item in items] == ["one"]
    counted = await client.post("/v1/responses/input_tokens", json={"input": "one", "from_state": state.id})
    assert counted.json()["input_tokens"] == len(engine.requests[0].prompt_token_ids)
    both = await create(client, "two", previous_response_id=first.id, from_state=state.id)
    assert (await error_of(both))["param"] == "from_state"
    service.states.delete(state.id, "")
    assert state.id in (await error_of(await create(client, "two", previous_response_id=first.id), 404))["message"]


async def test_a_tenant_unpacks_one_long_conversation_at_a_time(
    client: httpx.AsyncClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small requests may name long conversations, which take much more than they do while prompts are made of them."""
    first = await created(client, "x" * 100_000)
    running, most, wanted = 0, 0, 1
    make = service.prompts.chat

    async def chat(*args: Any, **options: Any) -> Prompt:
        nonlocal running, most
        running += 1
        most = max(most, running)
        prompt = await make(*args, **options)
        await until(lambda: most >= wanted)
        running -= 1
        return prompt

    monkeypatch.setattr(service.prompts, "chat", chat)
    await asyncio.gather(*(created(client, "hi", previous_response_id=first.id) for _ in range(5)))
    assert most == 1
    short = await created(client, "y")
    wanted = 2  # short ones wait for nobody
    await asyncio.gather(*(created(client, "hi", previous_response_id=short.id) for _ in range(5)))


async def test_a_stored_response_can_be_had_again_and_deleted(client: httpx.AsyncClient) -> None:
    whole = (await create(client)).json()
    streamed = events((await create(client, stream=True)).text)[-1][1]["response"]
    for response in (whole, streamed):
        path = f"/v1/responses/{response['id']}"
        assert (await client.get(path)).json() == response
        assert (await client.delete(path)).json() == {"id": response["id"], "object": "response", "deleted": True}
        for again in (await client.get(path), await client.delete(path), await client.post(f"{path}/cancel")):
            assert response["id"] in (await error_of(again, 404))["message"]
        error = await error_of(await create(client, previous_response_id=response["id"]))
        assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")


async def test_what_is_not_to_be_stored_is_not(client: httpx.AsyncClient) -> None:
    response = await created(client, store=False)
    assert (await client.get(f"/v1/responses/{response.id}")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [{"type": "custom", "name": "x"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"name": "x"}]}, "tools"),
        ({"input": [{"type": "mesage", "role": "user", "content": "x"}]}, "input"),
        ({"conversation": 5}, "conversation"),
        ({"include": [5]}, "include"),
        ({"truncation": "some"}, "truncation"),
        ({"background": True, "store": False}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"temperature": 3}, "temperature"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "narrator", "content": "x"}]}, "input"),
        ({"input": [{"type": "item_reference"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"model": "gpt-5"}, "model"),
    ],
)
async def test_what_cannot_be_done_is_refused(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    error = await error_of(await create(client, **fields), 404 if param == "model" else 400)
    assert error["param"] == param


async def test_what_changes_nothing_is_let_pass(client: httpx.AsyncClient) -> None:
    response = await created(
        client,
        tools=[],
        tool_choice="auto",
        reasoning={"effort": "low"},
        text={"format": {"type": "text"}, "verbosity": "low"},
        include=["reasoning.encrypted_content"],
        stream_options=None,
        service_tier="auto",
        top_logprobs=2,
        context_management=[{"type": "compaction", "compact_threshold": 1000}],
    )
    assert response.reasoning is not None
    assert response.text is not None
    assert (response.reasoning.effort, response.text.verbosity, response.top_logprobs) == ("low", "low", 2)
    assert response.output_text == "ABC"


CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "x"}


@pytest.mark.parametrize(
    "items",
    [[RESULT], [{**RESULT, "tool_call_id": None}], [{"role": "assistant", "content": "", "tool_calls": [CALLED]}]],
)
async def test_calls_and_results_of_chats_are_refused_with_their_items(
    client: httpx.AsyncClient, items: list[Any]
) -> None:
    error = await error_of(await create(client, input=[{"role": "user", "content": "hi"}, *items]))
    assert error["param"] == "input"
    assert "function_call_output" in error["message"]


async def test_a_failure_in_the_middle_is_a_failed_response(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.dies_after = 2
    got = events((await create(client, stream=True)).text)
    name, event = got[-1]
    assert name == "response.failed"
    checked(ResponseStreamEvent, event)
    assert event["response"]["error"] == {"code": "server_error", "message": "the engine died"}
    assert (await client.get(f"/v1/responses/{event['response']['id']}")).json()["status"] == "failed"


async def test_a_failure_before_the_first_token_is_a_status(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.capacity = 0
    for stream in (False, True):
        assert (await error_of(await create(client, stream=stream), 429))["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_slot(service: Service, engine: FakeEngine, stream: bool) -> None:
    body = {"input": "hi", "ignore_eos": True, "max_output_tokens": 10**6, "stream": stream}
    async with live(service) as client:
        request = asyncio.create_task(client.post("/v1/responses", json=body))
        await until(lambda: engine.running)
        request.cancel()
        await until(lambda: not engine.running)


async def test_a_stream_can_be_aborted(service: Service, engine: FakeEngine) -> None:
    body = {"input": "hi", "ignore_eos": True, "max_output_tokens": 10**6, "stream": True}
    async with live(service) as client, client.stream("POST", "/v1/responses", json=body) as stream:
        await until(lambda: engine.running)
        response_id = engine.requests[0].id.rpartition("-")[0]
        answer = await client.post("/abort_request", json={"request_id": response_id})
        assert answer.json() == {"aborted": 1}
        text = "".join([part async for part in stream.aiter_text()])
    name, event = events(text)[-1]
    assert (name, event["response"]["error"]["message"]) == ("response.failed", "the request was aborted")


async def test_input_tokens_are_those_of_the_response(client: httpx.AsyncClient) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    first = (await create(client)).json()
    for fields in (
        {"input": "hi"},
        {"input": "hi", "instructions": "Be brief.", "tools": [tool]},
        {"input": [{"role": "user", "content": "more"}], "previous_response_id": first["id"], "store": False},
    ):
        whole = (await client.post("/v1/responses", json={**fields, "max_output_tokens": 1})).json()
        counted = await client.post("/v1/responses/input_tokens", json={**fields, "max_output_tokens": 1})
        assert counted.json() == {"object": "response.input_tokens", "input_tokens": whole["usage"]["input_tokens"]}
        assert "x-roost-warnings" not in counted.headers
    checked(InputTokenCountResponse, counted.text)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"conversation": {}}, "conversation"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
async def test_errors_of_a_count_of_input_tokens(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/responses/input_tokens", json={"input": "hi", **fields})
    assert (await error_of(response))["param"] == param


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_repeats_its_request(client: httpx.AsyncClient, stream: bool) -> None:
    sent = {
        "store": False,
        "max_tool_calls": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "max_output_tokens": 9,
    }
    got = await create(client, stream=stream, **sent)
    last = events(got.text)[-1][1]["response"] if stream else got.json()
    assert {name: last[name] for name in sent} == sent
    unset = (await create(client)).json()
    expected = {"store": True, "max_tool_calls": None, "presence_penalty": 0, "frequency_penalty": 0}
    assert {name: unset[name] for name in expected} == expected


async def test_a_background_response_is_fetched_later(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.gate.clear()
    begun = await created(client, background=True)
    assert (begun.status, begun.output) == ("queued", [])
    path = f"/v1/responses/{begun.id}"
    assert (await client.get(path)).json()["status"] == "in_progress"
    engine.gate.set()
    done = await ended(client, begun.id)
    assert (done.status, done.output_text, done.background) == ("incomplete", "ABC", True)
    cancelled = await client.post(f"{path}/cancel")
    assert cancelled.json()["status"] == "incomplete"
    goes_on = await created(client, "more", previous_response_id=begun.id)
    assert goes_on.previous_response_id == begun.id


async def test_a_background_response_is_cancelled(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.gate.clear()
    begun = await created(client, background=True)
    await until(lambda: engine.running)
    for _ in range(2):
        response = await client.post(f"/v1/responses/{begun.id}/cancel")
        assert checked(Response, response.text).status == "cancelled"
    assert not engine.running


async def test_a_background_response_that_is_deleted_does_not_come_back(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.gate.clear()
    begun = await created(client, background=True)
    await until(lambda: engine.running)
    assert (await client.delete(f"/v1/responses/{begun.id}")).status_code == 200
    assert not engine.running
    await error_of(await client.get(f"/v1/responses/{begun.id}"), 404)


async def test_a_background_response_that_fails_says_so(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.capacity = 0
    begun = await created(client, background=True)
    failed = await ended(client, begun.id)
    assert (failed.status, failed.error and failed.error.code) == ("failed", "rate_limit_exceeded")


async def test_other_responses_cannot_be_cancelled_or_followed(client: httpx.AsyncClient) -> None:
    response = await created(client)
    path = f"/v1/responses/{response.id}"
    await error_of(await client.post(f"{path}/cancel"))
    assert (await error_of(await client.get(f"{path}?stream=true")))["param"] == "stream"
    assert (await error_of(await client.get(f"{path}?starting_after=2")))["param"] == "starting_after"
    assert (await error_of(await client.get(f"{path}?stream=true&starting_after=-2")))["param"] == "starting_after"
    await error_of(await client.get("/v1/responses/resp_0?stream=true"), 404)


async def test_a_background_stream_is_followed_again(client: httpx.AsyncClient) -> None:
    text = (await create(client, background=True, stream=True)).text
    got = events(text)
    for _, event in got:
        checked(ResponseStreamEvent, event)
    last = len(got) - 1
    assert [event["sequence_number"] for _, event in got] == list(range(last + 1))
    assert [event["response"]["status"] for _, event in got[:2]] == ["queued", "in_progress"]
    assert got[-1][0] == "response.incomplete"
    path = f"/v1/responses/{got[0][1]['response']['id']}"
    assert (await client.get(path)).json() == got[-1][1]["response"]
    assert (await client.get(f"{path}?stream=true")).text == text
    for number in (0, 4, last):
        again = (await client.get(f"{path}?stream=true&starting_after={number}")).text
        assert (events(again) if again else []) == got[number + 1 :]
    for number in (last + 1, 10**9):
        error = await error_of(await client.get(f"{path}?stream=true&starting_after={number}"))
        assert (error["param"], f"send starting_after={last} or less" in error["message"]) == ("starting_after", True)
    await client.delete(path)
    await error_of(await client.get(f"{path}?stream=true"), 404)


async def test_a_background_stream_goes_on_without_its_client(service: Service, engine: FakeEngine) -> None:
    """The first client leaves; others see what it saw, and what comes then, when it comes."""
    body = {"input": "hi", "max_output_tokens": 3, "background": True, "stream": True}
    engine.gate.clear()
    async with live(service) as client:
        async with client.stream("POST", "/v1/responses", json=body) as first:
            seen = await anext(first.aiter_text())
        (name, event), *_ = events(seen.rpartition("\n\n")[0])
        assert name == "response.created"
        path = f"/v1/responses/{event['response']['id']}"
        others = [asyncio.create_task(client.get(f"{path}?stream=true&starting_after={n}")) for n in (-1, 0)]
        await until(lambda: engine.running)
        assert (await client.get(path)).json()["status"] == "in_progress"
        engine.gate.set()
        whole, rest = [events((await other).text) for other in others]
        assert [event["sequence_number"] for _, event in whole] == list(range(len(whole)))
        assert (whole[1:], whole[-1][0]) == (rest, "response.incomplete")


async def test_followers_are_limited_for_each_tenant(
    service: Service, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.server.features.responses.event_log.MAX_FOLLOWERS", 2)
    engine.gate.clear()
    keys = Access(keys=ApiKeys(["greedy:g", "modest:m"]))
    body = {"input": "hi", "max_output_tokens": 3, "background": True, "stream": True}
    greedy, modest = {"x-api-key": "g"}, {"x-api-key": "m"}
    async with live(service, access=keys) as client, AsyncExitStack() as streams:
        for _ in range(2):
            first = await streams.enter_async_context(client.stream("POST", "/v1/responses", json=body, headers=greedy))
            assert first.status_code == 200
        reading = first.aiter_text()  # it closes the stream when it is dropped
        for_one = events((await anext(reading)).rpartition("\n\n")[0])[0][1]["response"]["id"]
        for refused in (
            await client.post("/v1/responses", json=body, headers=greedy),
            await client.get(f"/v1/responses/{for_one}?stream=true", headers=greedy),
        ):
            assert "follows 2 streams" in (await error_of(refused, 429))["message"]
        assert len(engine.requests) <= 2, "what cannot be followed is not begun"
        following = asyncio.create_task(client.post("/v1/responses", json=body, headers=modest))
        engine.gate.set()
        assert events((await following).text)[-1][0] == "response.incomplete"
        await streams.aclose()
        await until_status(client, f"/v1/responses/{for_one}?stream=true", greedy)


async def until_status(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    """Asks until the streams that were closed count no more."""
    async with asyncio.timeout(60):
        while (await client.get(path, headers=headers)).status_code == 429:
            await asyncio.sleep(0.01)


async def test_a_background_stream_that_is_cancelled_ends(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.gate.clear()
    stream = asyncio.create_task(create(client, background=True, stream=True))
    await until(lambda: engine.running)
    response_id = engine.requests[0].id.rpartition("-")[0]
    assert (await client.post(f"/v1/responses/{response_id}/cancel")).json()["status"] == "cancelled"
    name, event = events((await stream).text)[-1]
    assert (name, event["response"]["status"]) == ("response.failed", "cancelled")
    checked(ResponseStreamEvent, event)


TALK = [
    {"role": "developer", "content": "be short"},
    {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "three"},
]


async def items_of(client: httpx.AsyncClient, response: Response, **query: Any) -> ResponseItemList:
    answer = await client.get(f"/v1/responses/{response.id}/input_items", params=query)
    assert answer.status_code == 200, answer.text
    return checked(ResponseItemList, answer.text)


async def test_input_items_are_what_a_response_was_made_of(client: httpx.AsyncClient) -> None:
    first = await created(client, TALK, instructions="these are none")
    second = await created(client, "four", previous_response_id=first.id)
    listed = await items_of(client, second, order="asc")
    described = [item.model_dump(exclude={"id", "status"}, exclude_none=True) for item in listed.data]
    assert described == [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be short"}]},
        {"type": "message", "role": "user", "content": TALK[1]["content"]},
        TALK[2],
        TALK[3],
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": first.output_text, "annotations": []}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "four"}]},
    ]
    assert (await items_of(client, first)).data[0].type == "function_call_output"


async def test_input_items_come_in_pages(client: httpx.AsyncClient) -> None:
    response = await created(client, [{"role": "user", "content": str(i)} for i in range(25)])
    whole = (await items_of(client, response, limit=100, order="asc")).data
    assert len({item.id for item in whole}) == 25
    newest = await items_of(client, response)
    assert (newest.data, newest.has_more) == (whole[:4:-1], True)
    rest = await items_of(client, response, after=newest.last_id)
    assert (rest.data, rest.has_more) == (whole[4::-1], False)
    assert (newest.first_id, rest.last_id) == (whole[-1].id, whole[0].id)
    assert (await items_of(client, response, after=rest.last_id)).data == []
    assert (await items_of(client, response, order="asc", limit=25)).has_more is False


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("limit", 101), ("order", "up"), ("after", "msg_x")])
async def test_pages_that_cannot_be(client: httpx.AsyncClient, name: str, value: Any) -> None:
    response = await created(client)
    path = f"/v1/responses/{response.id}/input_items"
    assert (await error_of(await client.get(path, params={name: value})))["param"] == name
    await error_of(await client.get("/v1/responses/resp_0/input_items"), 404)


async def test_a_silent_stream_is_kept_alive(engine: FakeEngine, model: ServedModel) -> None:
    engine.gate.clear()
    async with live(make_service(engine, model, keep_alive_s=0.02)) as client:
        body = {"input": "hi", "max_output_tokens": 3, "stream": True}
        async with client.stream("POST", "/v1/responses", json=body) as response:
            text = ""
            async for piece in response.aiter_text():
                text += piece
                if ": keep-alive\n\n" in text:
                    engine.gate.set()
    assert ": keep-alive\n\n" in text
    assert events(text)[-1][0] == "response.incomplete"
