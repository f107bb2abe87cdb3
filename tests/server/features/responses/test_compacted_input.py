"""`/v1/responses/compact`: one item stands for all messages, and nothing of them is lost."""

import base64
import json
from typing import Any

import httpx
import pytest
from client_types import checked
from fake_engine import FakeEngine
from openai.types.responses import CompactedResponse
from roost.server.generation.service import Service
from roost.server.schemas.json_limits import MAX_CONTAINERS
from roost.server.text.chat_format import Conversation, ConversationMessage
from unpacked_states import saved_state

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a": 1}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "three"},
]
NEXT = {"role": "user", "content": "four"}


async def compacted(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/responses/compact", json={"model": "counter", **fields})
    assert response.status_code == 200, response.text
    assert checked(CompactedResponse, response.text).object == "response.compaction"
    output: list[dict[str, Any]] = response.json()["output"]
    return output


async def prompt_of(client: httpx.AsyncClient, engine: FakeEngine, said: Any, **fields: Any) -> tuple[int, ...]:
    response = await client.post("/v1/responses", json={"input": said, "max_output_tokens": 1, **fields})
    assert response.status_code == 200, response.text
    assert "x-roost-warnings" not in response.headers
    return tuple(engine.requests[-1].prompt_token_ids)


async def test_a_compacted_conversation_continues_as_the_whole_one(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    whole = await prompt_of(client, engine, [*TURNS, NEXT])
    item = await compacted(client, input=TURNS)
    assert [each["type"] for each in item] == ["compaction"]
    assert await prompt_of(client, engine, [*item, NEXT]) == whole
    again = await compacted(client, input=item, instructions="Not kept.", prompt_cache_key="k")
    assert await prompt_of(client, engine, [*again, NEXT]) == whole


async def test_the_response_before_is_compacted_with_the_input(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    first = (await client.post("/v1/responses", json={"input": "one", "max_output_tokens": 3})).json()
    whole = await prompt_of(client, engine, [NEXT], previous_response_id=first["id"], store=False)
    assert (
        await prompt_of(client, engine, await compacted(client, input=[NEXT], previous_response_id=first["id"]))
        == whole
    )
    alone = await compacted(client, input=None, previous_response_id=first["id"])
    assert await prompt_of(client, engine, [*alone, NEXT]) == whole


async def test_a_stored_conversation_is_compacted_without_input(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    conversation = (await client.post("/v1/conversations", json={"items": TURNS})).json()["id"]
    whole = await prompt_of(client, engine, [*TURNS, NEXT])
    item = await compacted(client, conversation=conversation)
    assert await prompt_of(client, engine, [*item, NEXT]) == whole


async def test_the_prompt_is_counted(client: httpx.AsyncClient) -> None:
    counted = (await client.post("/v1/responses/input_tokens", json={"input": TURNS})).json()["input_tokens"]
    usage = (await client.post("/v1/responses/compact", json={"model": "counter", "input": TURNS})).json()["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (counted, 0, counted)


def own(items: Any) -> str:
    return "roost1." + base64.b64encode(json.dumps(items).encode()).decode()


@pytest.mark.parametrize(
    "content",
    [
        "roost1.",
        "roost1.?",
        own({}),
        own([{"type": "function_call"}]),
        own([{"type": "item_reference", "id": "msg_1"}]),
        own([{"type": "compaction", "encrypted_content": own([])}]),
    ],
)
async def test_a_damaged_item_is_refused(client: httpx.AsyncClient, content: str) -> None:
    item = {"type": "compaction", "encrypted_content": content}
    response = await client.post("/v1/responses", json={"input": [item, NEXT]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith("input")
    assert "encrypted_content is damaged" in error["message"]


async def test_several_items_stand_for_their_messages_in_order(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    items = [*await compacted(client, input=TURNS[:2]), *await compacted(client, input=TURNS[2:])]
    assert await prompt_of(client, engine, [*items, NEXT]) == await prompt_of(client, engine, [*TURNS, NEXT])


async def test_the_messages_of_an_item_count_as_those_of_a_body(client: httpx.AsyncClient) -> None:
    """A JSON text of few bytes may make very many objects."""
    item = {"type": "compaction", "encrypted_content": own([[]] * MAX_CONTAINERS)}
    response = await client.post("/v1/responses", json={"input": [item, NEXT]})
    assert response.status_code == 400


async def test_an_item_of_another_server_is_left_out_and_reported(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    alone = await prompt_of(client, engine, [NEXT])
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": "gAAAAABpM0Yj"}
    response = await client.post("/v1/responses", json={"input": [item, NEXT], "max_output_tokens": 1})
    assert response.headers["x-roost-warnings"] == "input%5B0%5D%3A compaction"
    assert tuple(engine.requests[-1].prompt_token_ids) == alone


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "one"}, "model"),
        ({"model": "counter", "previous_response_id": "resp_x"}, "resp_x"),
    ],
)
async def test_errors(client: httpx.AsyncClient, body: dict[str, Any], said: str) -> None:
    response = await client.post("/v1/responses/compact", json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


async def test_what_continues_a_saved_state_is_refused(client: httpx.AsyncClient, service: Service) -> None:
    """Its first messages are only in the state."""
    history = await service.prompts.chat(Conversation([ConversationMessage("user", "a")]))
    state = service.states.keep(saved_state([*history.token_ids, 4, 5]), "", 10**6)
    response = await client.post(
        "/v1/responses/compact", json={"model": "counter", "input": "b", "from_state": state.id}
    )
    assert response.status_code == 400
    assert "saved state" in response.json()["error"]["message"]
