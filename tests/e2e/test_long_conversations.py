"""A stored conversation with the demo model, which costs as much to continue when it is long as when it is short."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import batched
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_talk import CHUNK, SLOTS, STORIES, turns
from server_process import serving

BLOCK = 64
"""Tokens between two snapshots of the prefix cache."""

REPLY, NEW = 24, 60
"""Maximum tokens of a reply, and of a turn's question with its markup."""


@contextmanager
def replica(folder: Path) -> Iterator[httpx.Client]:
    """Yields a client of a server with a store in a folder, and a state cache beside it."""
    options = ("--store", f"sqlite://{folder}/store.db")
    shapes = ("--slots", str(SLOTS), "--prefill-chunk", str(CHUNK))
    with (
        serving("demo", *shapes, *options, programs="demo") as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        yield client


def posted(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def told(client: httpx.Client, num_stories: int) -> str:
    """Returns the id of a conversation with a name, and then stories."""
    stories = [text for i in range(num_stories) for text in (f"Tell me story {i}.", STORIES[i % len(STORIES)])]
    items = turns("My name is Theo.", "Nice to meet you, Theo!", *stories)
    conversation = str(posted(client, "/v1/conversations", {})["id"])
    for some in batched(items, 20):
        posted(client, f"/v1/conversations/{conversation}/items", {"items": some})
    return conversation


def next_turn(client: httpx.Client, conversation: str) -> tuple[int, int]:
    """Continues a conversation; returns the tokens of the prompt, and how many of them were prefilled."""
    body = {"conversation": conversation, "input": "What is my name?", "max_output_tokens": REPLY, "temperature": 0}
    usage = posted(client, "/v1/responses", body)["usage"]
    return usage["input_tokens"], usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize(
    ("num_stories", "at_least"),
    [pytest.param(4, 500, id="short"), pytest.param(330, 50_000, id="long", marks=pytest.mark.slow)],
)
def test_a_turn_prefills_only_what_is_new(tmp_path: Path, num_stories: int, at_least: int) -> None:
    """The bound is the same for any length, also on another server with the same store and state cache."""
    with replica(tmp_path) as client:
        conversation = told(client, num_stories)
        length, num_read = next_turn(client, conversation)
        assert length >= at_least
        assert num_read > length - BLOCK, "all of it is new"
        counts = [next_turn(client, conversation) for _ in range(2)]
    with replica(tmp_path) as client:
        counts.append(next_turn(client, conversation))
    print(f"{counts[0][0]} tokens; prefilled by a turn, by the next, and after a restart: {[n for _, n in counts]}")
    assert all(num_read <= BLOCK + REPLY + NEW for _, num_read in counts)
