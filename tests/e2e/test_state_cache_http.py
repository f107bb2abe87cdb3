"""The prefix cache, seen from outside of a real server process."""

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


@pytest.mark.full
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
