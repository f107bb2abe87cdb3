"""How long responses are remembered, and what that takes."""

import gc
import tracemalloc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from roost.server.errors.request_errors import ApiError
from roost.server.features.responses.event_log import EventLog
from roost.server.features.responses.input_items import page
from roost.server.features.responses.memory_responses import MemoryResponses
from roost.server.features.responses.response_store import StoredResponse, num_messages, pack, unpack
from roost.server.generation.prompts import message_text
from roost.server.http.response_parts import to_json
from roost.server.tenancy.tenant import tenant
from roost.server.text.conversation import ConversationMessage, FunctionCall

HELLO = ConversationMessage("user", "hello")


def keep(store: MemoryResponses, name: str, text: str = "", *, events: EventLog | None = None, **fields: Any) -> None:
    response = {"id": name, "instructions": None, "text": text, **fields}
    put(store, name, to_json(response), events=events)


def put(
    store: MemoryResponses,
    name: str,
    response: bytes = b"{}",
    history: Sequence[ConversationMessage] = (HELLO,),
    output: Sequence[ConversationMessage] = (),
    events: EventLog | None = None,
) -> None:
    copied = bytes(memoryview(response))
    store.put(StoredResponse(name, copied, pack(history), pack(output), is_streamed=events is not None), events)


def now[T](work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def knows(store: MemoryResponses, name: str) -> bool:
    try:
        now(store.get(name))
    except ApiError as error:
        return error.status_code != 404
    else:
        return True


def known(store: MemoryResponses, names: str) -> str:
    return "".join(name for name in names if knows(store, name))


def texts(store: MemoryResponses, name: str) -> list[str]:
    stored = now(store.get(name))
    return [message_text(message) for message in (*unpack(stored.history), *unpack(stored.output))]


def test_the_oldest_make_room() -> None:
    store = MemoryResponses(max_responses=2)
    for name in "abc":
        keep(store, name)
    assert known(store, "abc") == "bc"


def test_a_new_state_replaces_the_old_one() -> None:
    store = MemoryResponses(max_responses=2)
    for name in ("a", "b", "a", "a"):
        keep(store, name, "x")
    assert known(store, "ab") == "ab"


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 10_000},
        {"instructions": "x" * 10_000},
        {"tools": [{"name": "f", "parameters": {"properties": {str(i): {"type": "string"} for i in range(400)}}}]},
        {"metadata": {f"k{i}": "x" * 500 for i in range(20)}},
        {"output": [{"content": [{"text": "x" * 10_000}]}]},
    ],
)
def test_whatever_a_response_holds_makes_room(fields: dict[str, Any]) -> None:
    store = MemoryResponses(max_bytes=40_000)
    for name in "abcdefgh":
        keep(store, name, **fields)
    assert store.num_bytes <= 40_000
    assert len(known(store, "abcdefgh")) < 4
    assert knows(store, "h")
    keep(store, "i", "x" * 50_000)
    assert not knows(store, "i"), "too long by itself"


def test_messages_make_room() -> None:
    store = MemoryResponses(max_bytes=40_000)
    for name in "abcdefgh":
        messages = [ConversationMessage("user", "x" * 10_000)]
        put(store, name, history=messages)
    assert len(known(store, "abcdefgh")) == 3
    output = ConversationMessage("assistant", "x" * 10_000)
    put(store, "h", history=messages, output=[output])
    assert len(known(store, "abcdefgh")) == 2


def test_events_count_while_they_come() -> None:
    store, log = MemoryResponses(max_bytes=40_000), EventLog()
    keep(store, "a")
    keep(store, "b", events=log)
    before = store.num_bytes
    for _ in range(20):
        store.log("b", log, bytes(1000))
    assert store.num_bytes - before == log.num_bytes > 20_000
    assert known(store, "ab") == "ab"
    for _ in range(20):
        store.log("b", log, bytes(1000))
    assert store.num_bytes <= 40_000
    assert not knows(store, "b"), "the newest of all, but too long by itself"


def test_a_log_that_nobody_can_ask_for_is_only_a_tail() -> None:
    """Its response is gone, but still being made."""
    store, log = MemoryResponses(), EventLog()
    keep(store, "a", events=log)
    for _ in range(1000):
        store.log("a", log, bytes(1000))
    now(store.delete("a"))
    for _ in range(1000):
        store.log("a", log, bytes(1000))
    assert log.num_bytes <= 64 * 2**10
    assert store.num_bytes == 0


def test_a_tenant_takes_nothing_from_one_that_holds_less() -> None:
    store = MemoryResponses(max_responses=6, max_bytes=60_000)
    keep(store, "a", "x" * 10_000)
    token = tenant.set("greedy")
    for name in "bcdefgh":
        keep(store, name, "x" * 10_000)
    for number in range(20):
        keep(store, f"small {number}")
    assert knows(store, "small 19")
    tenant.reset(token)
    assert knows(store, "a")


def test_an_answer_is_part_of_the_conversation() -> None:
    store = MemoryResponses()
    keep(store, "a")
    assert texts(store, "a") == ["hello"]
    put(store, "a", output=[ConversationMessage("assistant", "you")])
    assert texts(store, "a") == ["hello", "you"]


def test_what_is_gone_cannot_be_deleted_again() -> None:
    store = MemoryResponses()
    keep(store, "a")
    now(store.delete("a"))
    with pytest.raises(ApiError) as missing:
        now(store.delete("a"))
    assert missing.value.status_code == 404


def test_messages_are_kept_as_they_were() -> None:
    """Calls, results and parts of texts are kept, too, and messages are counted without being unpacked."""
    messages = [
        ConversationMessage("user", ("a", "é\u2028")),
        ConversationMessage("user", '"role":"user" {"role":"user"} \\"role":'),
        ConversationMessage("assistant", calls=(FunctionCall("call_1", "f", '{"role": 1,"role":"a"}'),)),
        ConversationMessage("tool", "", call_id='"role":'),
        ConversationMessage("assistant", ("no",)),
    ]
    packed = pack(messages)
    assert unpack(packed) == messages
    assert num_messages(packed) == len(messages)
    listed = page("resp_a", messages, 20, "asc", None)["data"]
    kinds = ["message", "message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in listed] == kinds


def text(size: int) -> str:
    return "x" * size


KEEPERS: dict[str, Callable[[MemoryResponses, int], None]] = {
    "instructions": lambda store, i: keep(store, f"{i}", instructions=text(20_000)),
    "tools": lambda store, i: keep(store, f"{i}", tools=[{"parameters": {f"{k}": {"t": [k]} for k in range(1000)}}]),
    "metadata": lambda store, i: keep(store, f"{i}", metadata={f"{k}": text(500) for k in range(16)}),
    "nothing": lambda store, i: keep(store, f"{i}"),
    "messages": lambda store, i: put(store, f"{i}", history=[ConversationMessage("user", "hi") for _ in range(300)]),
    "answer": lambda store, i: put(store, f"{i}", history=[], output=[ConversationMessage("assistant", text(20_000))]),
    "events": lambda store, i: keep_events(store, f"{i}"),
}


def keep_events(store: MemoryResponses, name: str) -> None:
    log = EventLog()
    keep(store, name, events=log)
    for number in range(100):
        store.log(name, log, b"data: %d" % number)


@pytest.mark.parametrize("field", KEEPERS)
def test_what_is_counted_is_what_is_taken(field: str) -> None:
    store, keep_one, count = MemoryResponses(), KEEPERS[field], 40
    keep_one(store, -1)
    counted = store.num_bytes
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(count):
            keep_one(store, number)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = store.num_bytes - counted
    assert len([n for n in range(count) if knows(store, f"{n}")]) == count
    assert taken <= 1.25 * counted
    assert counted <= 1.25 * taken or field == "nothing", "an allowance for objects outweighs what is nearly empty"
