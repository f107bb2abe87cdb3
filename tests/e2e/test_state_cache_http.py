"""The prefix cache, seen from outside of a real server process."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import API_KEY, SHAPES, ServerProcess, serving

_fresh = itertools.count(1)


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=240) as client:
        yield client


def prompt(length: int) -> list[int]:
    """Returns tokens that no other test has sent."""
    kind = next(_fresh)
    return [10 + (kind * 31 + i * i * kind) % 400 for i in range(length)]


def ask(client: httpx.Client, token_ids: list[int], **fields: Any) -> tuple[list[int], int]:
    """Returns a response's tokens and the number of cached prompt tokens."""
    body = {"token_ids": token_ids, "max_tokens": 5, "temperature": 0, "ignore_eos": True, **fields}
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["token_ids"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_the_same_prompt_twice(client: httpx.Client) -> None:
    tokens = prompt(300)
    (first, none), (second, all_of_it) = ask(client, tokens), ask(client, tokens)
    assert (none, all_of_it) == (0, 300)
    assert first == second


def test_a_shared_prefix(client: httpx.Client) -> None:
    system, questions = prompt(100), (prompt(20), prompt(20))
    assert [ask(client, system + question)[1] for question in questions] == [0, 64]


def test_tenants(client: httpx.Client) -> None:
    tokens = prompt(300)
    assert [ask(client, tokens, cache_salt=salt)[1] for salt in ("a", "b", "a")] == [0, 0, 300]


async def test_a_client_that_leaves_and_comes_back(server: ServerProcess, client: httpx.Client) -> None:
    tokens = prompt(100_000)
    async with httpx.AsyncClient(base_url=server.url, headers=client.headers, timeout=240) as leaving:
        before = (await leaving.get("/load")).json()["prompt_tokens"]
        asking = asyncio.create_task(leaving.post("/generate", json={"token_ids": tokens, "max_tokens": 1}))
        while (await leaving.get("/load")).json()["prompt_tokens"] < before + 2048:
            assert not asking.done()
        asking.cancel()
    _, num_cached = await asyncio.to_thread(ask, client, tokens)
    assert 0 < num_cached < 100_000
    assert num_cached % 64 == 0


def test_a_conversation_goes_on_where_it_was(client: httpx.Client) -> None:
    previous, counts = None, []
    for turn in range(3):
        text = "Tell me of the sea. " * 10 if turn == 0 else "And then?"
        body = {"input": text, "previous_response_id": previous, "max_output_tokens": 8}
        response = client.post("/v1/responses", json=body).json()
        previous = response["id"]
        details = response["usage"]
        counts.append((details["input_tokens"], details["input_tokens_details"]["cached_tokens"]))
    (first, none), *later = counts
    assert none == 0
    for (before, _), (_, num_cached) in itertools.pairwise(counts):
        assert num_cached == before // 64 * 64, "all but the last reply and what is new"
    assert first >= 64
    assert later


@pytest.mark.full
def test_an_inexact_cache_spares_the_reply_too(tiny_config: Path) -> None:
    """All of the reply is cached but its last token, which was sampled and not processed."""
    with (
        serving(f"random:{tiny_config}", *SHAPES, "--state-cache-inexact", programs="tiny-inexact") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        history, counts = prompt(100), []
        for _ in range(3):
            reply, num_cached = ask(client, history, max_tokens=90)
            counts.append((len(history), num_cached))
            history = [*history, *reply, *prompt(10)]
        assert counts == [(100, 0), (200, 189), (300, 289)]
        assert client.get("/load").json()["running"] == 0


def test_metrics(client: httpx.Client) -> None:
    ask(client, prompt(100))
    time.sleep(0.25)  # the metrics page is cached for 0.2 s
    page = client.get("/metrics").text
    samples = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(samples['roost_state_cache_bytes{tier="host"}']) > 0
    assert float(samples["roost_state_cache_queries_total"]) >= float(samples["roost_state_cache_hits_total"])
    assert float(samples["roost_compiles_since_ready_total"]) == 0
    assert client.get("/load").json()["state_cache_bytes"] > 0
    assert client.get("/server_info").json()["state_cache_bytes"] > 2**20


def test_conversations_survive_a_restart(tiny_config: Path, tmp_path: Path) -> None:
    """The next turn processes only the last reply and new tokens, even after a restart or beside a corrupt file.

    The items of one conversation are in the database, and its state is on the disk, beside it.
    """
    states = tmp_path / "store.db-states"
    arguments = [f"random:{tiny_config}", *SHAPES, "--store", f"sqlite://{tmp_path / 'store.db'}"]
    history, counts = prompt(300), list[tuple[int, int]]()
    first, stored, conversation = history, list[tuple[int, int]](), ""
    for turn in range(2):
        with serving(*arguments, programs="tiny") as server, httpx.Client(base_url=server.url, timeout=60) as client:
            if not conversation:
                items = [{"role": "user", "content": "Tell me of the sea. " * 50}]
                conversation = client.post("/v1/conversations", json={"items": items}).json()["id"]
            for _ in range(2):
                body = {"input": "And then?", "conversation": conversation, "max_output_tokens": 8}
                usage = client.post("/v1/responses", json=body).json()["usage"]
                stored.append((usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]))
                reply, num_cached = ask(client, history)
                counts.append((len(history), num_cached))
                history = [*history, *reply, *prompt(10)]
            if turn == 1:
                assert ask(client, first)[1] == 256
                time.sleep(0.25)  # the metrics page is cached for 0.2 s
                assert "roost_state_cache_disk_errors_total 1.0" in client.get("/metrics").text
        for path in states.rglob("*.end"):
            path.write_bytes(path.read_bytes()[:-1])
    assert stored[0][0] >= 256
    for each in (stored, counts):
        assert each[0][1] == 0
        for (before, _), (_, num_cached) in itertools.pairwise(each):
            assert num_cached == before // 64 * 64, "all but the last reply and what is new"


def test_a_state_is_saved_gone_on_from_and_moved(client: httpx.Client) -> None:
    """The output equals that of the whole prompt, whichever server restores the state."""
    tokens = prompt(300)
    body = {"token_ids": tokens, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    answer = client.post("/generate", json=body).json()
    state = client.post("/v1/states", json={"request_id": answer["id"]}).json()
    assert (state["tokens"], state["read_tokens"]) == (305, 256)
    file = client.get(f"/v1/states/{state['id']}/export").content
    moved = client.post("/v1/states/import", content=file).json()
    whole = ask(client, [*tokens, *answer["choices"][0]["token_ids"], 20, 21], cache_salt="nobody's")
    for state_id in (state["id"], moved["id"]):
        assert ask(client, [20, 21], from_state=state_id) == (whole[0], 256)
    fork = {
        "token_ids": [20, 21],
        "from_state": state["id"],
        "n": 3,
        "max_tokens": 5,
        "temperature": 0,
        "ignore_eos": True,
    }
    forked = client.post("/generate", json=fork).json()["choices"]
    assert [choice["token_ids"] for choice in forked] == [whole[0]] * 3
    assert ask(client, [20, 21], from_state=moved["id"])[1] == 307, "what it led to is remembered for it alone"
