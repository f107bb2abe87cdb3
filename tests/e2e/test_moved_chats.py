"""A chat with the demo model is moved from one server to another by its state's file, and goes on there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from demo_talk import CHUNK, SLOTS, STORIES, far, turns
from roost.engine.types.snapshot import pack, unpack
from server_process import ServerProcess, run_here, serving

OPTIONS = ("demo", "--slots", str(SLOTS), "--prefill-chunk", str(CHUNK))
MORE = {"role": "user", "content": "What is the capital of Spain?"}
KEYS = "one:11,two:22"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Yields a server without keys, and one with those of two tenants."""
    with serving(*OPTIONS, programs="demo") as first, serving(*OPTIONS, programs="demo", ROOST_API_KEY=KEYS) as second:
        yield first, second


@pytest.fixture
def first(servers: tuple[ServerProcess, ServerProcess]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=servers[0].url, timeout=600) as client:
        yield client


@pytest.fixture
def second(servers: tuple[ServerProcess, ServerProcess]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=servers[1].url, timeout=600, headers={"x-api-key": "11"}) as client:
        yield client


def ask(client: httpx.Client, messages: list[dict[str, str]], **fields: Any) -> dict[str, Any]:
    body = {"messages": messages, "temperature": 0, "max_tokens": 120, "logprobs": True, **fields}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def bits(answer: dict[str, Any]) -> Any:
    """Returns the text and each token's log-probability."""
    (choice,) = answer["choices"]
    return choice["message"]["content"], choice["logprobs"]


def num_read(answer: dict[str, Any]) -> int:
    """Returns the number of prompt tokens that were not cached."""
    usage = answer["usage"]
    return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])


def export(client: httpx.Client, answer: dict[str, Any]) -> tuple[str, bytes]:
    """Saves the state of an answer; returns its id and its file."""
    state_id = client.post("/v1/states", json={"request_id": answer["id"]}).json()["id"]
    return state_id, client.get(f"/v1/states/{state_id}/export").content


def imported(client: httpx.Client, file: bytes) -> str:
    response = client.post("/v1/states/import", content=file)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def long_chat(num_stories: int) -> list[dict[str, str]]:
    """Returns a chat in which a name comes first, and then stories."""
    stories = [text for i in range(num_stories) for text in (f"Tell me story {i}.", STORIES[i % len(STORIES)])]
    return turns("My name is Theo.", "Nice to meet you, Theo!", *stories, "What is my name?")


@pytest.mark.parametrize(
    ("num_stories", "at_least"),
    [pytest.param(4, 500, id="short"), pytest.param(490, 78_000, id="long", marks=pytest.mark.slow)],
)
def test_a_moved_chat_reads_only_what_is_new(
    first: httpx.Client, second: httpx.Client, num_stories: int, at_least: int
) -> None:
    """The second server's answers are the first one's, bit for bit."""
    chat = long_chat(num_stories)
    reply = ask(first, chat)
    assert reply["usage"]["prompt_tokens"] >= at_least
    num_reply = reply["usage"]["completion_tokens"]
    state_id, file = export(first, reply)
    new_id = imported(second, file)
    moved = ask(second, [MORE], from_state=new_id)
    assert bits(moved) == bits(ask(first, [MORE], from_state=state_id))
    second.delete(f"/v1/states/{new_id}").raise_for_status()
    last = imported(second, file)
    whole = [*chat, reply["choices"][0]["message"], MORE]
    plain = ask(second, whole)
    assert bits(plain) == bits(ask(first, whole)) == bits(ask(first, whole, cache_salt="cold"))
    read = {"from_state": num_read(moved), "plain": num_read(plain), "last reply": num_reply}
    print(f"{reply['usage']['prompt_tokens']} tokens moved; tokens prefilled on the second server: {read}")
    assert read["from_state"] < 100
    assert read["plain"] < 300 + num_reply
    second.delete(f"/v1/states/{last}").raise_for_status()


def test_a_forged_file_changes_only_its_tenants_answers(first: httpx.Client, second: httpx.Client) -> None:
    messages = far("Emma")
    arrays, facts = unpack(export(first, ask(first, messages, max_tokens=1))[1])
    forged = pack({**arrays, "h": np.full_like(arrays["h"], 0.5)}, facts)
    with httpx.Client(base_url=second.base_url, timeout=600, headers={"x-api-key": "22"}) as neighbour:
        before = bits(ask(neighbour, messages))
        state_id = imported(second, forged)
        fooled = [bits(ask(second, messages)) for _ in range(2)]
        assert fooled[0] == fooled[1] != before
        assert bits(ask(neighbour, messages)) == before
        assert bits(ask(second, messages, cache_salt="another")) == before
        second.delete(f"/v1/states/{state_id}").raise_for_status()
        assert bits(ask(second, messages)) == before


def test_a_forged_file_changes_no_plain_answer_of_a_server_whose_users_share_no_key() -> None:
    """The server has no keys and is behind a proxy, so that anybody may have placed the file."""
    messages = far("Emma")
    with (
        serving(*OPTIONS, "--allow-host", "chat.example.org", programs="demo") as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        assert "imported states answer only from_state" in server.log.read_text()
        arrays, facts = unpack(export(client, before := ask(client, messages))[1])
        forged = pack({**arrays, "h": np.full_like(arrays["h"], 0.5)}, facts)
        state_id = imported(client, forged)
        client.post("/v1/states/import?cache_salt=mine", content=forged).raise_for_status()
        plain = [bits(ask(client, messages, cache_salt=salt)) for salt in ("", "cold", "another")]
        assert plain == [bits(before)] * 3
        assert bits(ask(client, messages, cache_salt="mine")) != bits(before)
        assert ask(client, [MORE], from_state=state_id)["choices"]


def test_the_terminal_moves_a_chat(servers: tuple[ServerProcess, ServerProcess], tmp_path: Path) -> None:
    def talk(server: ServerProcess, text: str) -> str:
        ended = run_here("chat", "--url", server.url, "--temperature", "0", text=text, ROOST_API_KEY="11")
        assert ended.exit_code == 0, ended.stderr
        return ended.stdout

    assert "Theo" in talk(servers[0], f"My name is Theo.\n/save {tmp_path}/theo.state\n")
    assert talk(servers[1], f"/load {tmp_path}/theo.state\nWhat is my name?\n") == "Your name is Theo.\n"


def test_the_messages_of_a_moved_chat_come_back(first: httpx.Client, second: httpx.Client) -> None:
    """Those before a state that an answer went on from, too; other tokens have no messages."""
    chat = turns("My name is Theo.", "Nice to meet you, Theo!", "Hello! ¿Sí?")
    answer = ask(first, chat)
    moved = ask(first, [MORE], from_state=export(first, answer)[0])
    replies = [turns("", each["choices"][0]["message"]["content"])[1] for each in (answer, moved)]
    imported = second.post("/v1/states/import", content=export(first, moved)[1]).json()
    assert imported["messages"] == [*chat, replies[0], MORE, replies[1]]
    plain = first.post("/v1/completions", json={"prompt": "Once upon", "max_tokens": 4}).json()
    assert "messages" not in second.post("/v1/states/import", content=export(first, plain)[1]).json()


def test_a_signed_file_of_the_same_engine_serves_other_tenants() -> None:
    messages, whose = far("Ben"), [{"x-api-key": key} for key in ("11", "22")]
    with (
        serving(*OPTIONS, programs="demo", ROOST_API_KEY=KEYS, ROOST_STATE_KEY="k" * 32) as server,
        httpx.Client(base_url=server.url, timeout=600, headers=whose[0]) as owner,
        httpx.Client(base_url=server.url, timeout=600, headers=whose[1]) as neighbour,
    ):
        answer = ask(owner, messages, cache_salt="private")
        file = export(owner, answer)[1]
        assert ask(neighbour, messages, max_tokens=1, cache_salt="cold")["usage"]["prompt_tokens"] == num_read(answer)
        imported(owner, file)
        shared = ask(neighbour, messages)
        assert num_read(shared) < 64
        assert bits(shared) == bits(answer)
        owner.headers["x-api-key"] = "22"
        arrays, facts = unpack(file, b"k" * 32)
        unsigned = owner.post("/v1/states/import", content=pack(arrays, facts))
        assert (unsigned.status_code, "not signed" in unsigned.text) == (400, True)
