"""How long responses are remembered."""

from typing import Any

import pytest
from roost.server.errors import ApiError
from roost.server.event_log import EventLog
from roost.server.response_store import ResponseStore
from roost.server.schema import ChatMessage


def keep(store: ResponseStore, name: str, text: str = "") -> None:
    store.keep({"id": name, "instructions": None}, [ChatMessage(role="user", content=text)])


def stored(store: ResponseStore, name: str, **fields: Any) -> None:
    store.keep({"id": name, "instructions": None}, [ChatMessage(role="user", content="hello")], **fields)


def knows(store: ResponseStore, name: str) -> bool:
    try:
        store.get(name)
    except ApiError as error:
        return error.status_code != 404
    else:
        return True


def test_the_oldest_make_room() -> None:
    store = ResponseStore(max_responses=2)
    for name in "abc":
        keep(store, name)
    assert [knows(store, name) for name in "abc"] == [False, True, True]


def test_a_new_state_replaces_the_old_one() -> None:
    store = ResponseStore(max_responses=2)
    for name in ("a", "b", "a", "a"):
        keep(store, name, "x")
    assert [knows(store, name) for name in "ab"] == [True, True]


def test_long_texts_make_room_too() -> None:
    store = ResponseStore(max_characters=10)
    keep(store, "a", "x" * 6)
    keep(store, "b", "x" * 4)
    assert knows(store, "a")
    keep(store, "c", "x" * 5)
    assert [knows(store, name) for name in "abc"] == [False, True, True]
    keep(store, "d", "x" * 11)
    assert not any(knows(store, name) for name in "abcd")
    keep(store, "e", "x" * 10)
    assert knows(store, "e")


def test_events_count_as_text() -> None:
    store, log = ResponseStore(max_characters=10), EventLog()
    log.append(b"12345")
    stored(store, "a", events=log)
    assert knows(store, "a")
    log.append(b"6")
    stored(store, "a", events=log)
    assert not knows(store, "a")


def test_an_answer_is_part_of_the_conversation() -> None:
    store = ResponseStore()
    stored(store, "a")
    assert [message.text for message in store.conversation("a")] == ["hello"]
    stored(store, "a", answer=ChatMessage(role="assistant", content="you"))
    assert [message.text for message in store.conversation("a")] == ["hello", "you"]


def test_what_is_gone_cannot_be_gone_on_from() -> None:
    store = ResponseStore()
    keep(store, "a", "hello")
    assert [message.text for message in store.conversation("a")] == ["hello"]
    assert store.conversation(None) == ()
    store.delete("a")
    with pytest.raises(ApiError):
        store.delete("a")
    with pytest.raises(ApiError) as missing:
        store.conversation("a")
    assert missing.value.status_code == 400
