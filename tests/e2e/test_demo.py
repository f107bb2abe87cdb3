"""The bundled model over HTTP, greedily: it knows facts, so that an error in the state shows as a wrong output."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from demo_talk import CHUNK, NAMES, SLOTS, far, near, turns
from server_process import serving

FEW = ("--slots", str(SLOTS), "--prefill-chunk", str(CHUNK))
"""Options for few program shapes: those of `test_demo_state`."""


@pytest.fixture(scope="module", params=[FEW, pytest.param((), marks=pytest.mark.robust)], ids=["few", "all"])
def demo(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """Yields a client of the bundled model's server, with few programs, and with those of README's first command."""
    programs = "demo" if request.param else "demo-all"
    with (
        serving("demo", *request.param, programs=programs) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client


def ask(client: httpx.Client, messages: list[dict[str, str]]) -> str:
    body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 120}
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    text: str = answer["choices"][0]["message"]["content"]
    return text.strip()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of Spain?", "The capital of Spain is Madrid."),
        ("Hello!", "Hello! How can I help you today?"),
        ("What is 2 + 3?", "2 + 3 = 5."),
        ("What day comes after Thursday?", "Friday comes after Thursday."),
    ],
)
def test_exact_answers(demo: httpx.Client, question: str, answer: str) -> None:
    assert ask(demo, turns(question)) == answer


def test_a_story(demo: httpx.Client) -> None:
    story = ask(demo, turns("Tell me a story about a boat."))
    assert "boat" in story.lower()
    assert len(story) > 150


def test_a_follow_up_is_understood(demo: httpx.Client) -> None:
    messages = turns("What is the capital of France?", "The capital of France is Paris.", "And of Japan?")
    assert ask(demo, messages) == "The capital of Japan is Tokyo."


@pytest.mark.parametrize("name", ["Theo", "Emma"])
def test_a_name_is_recalled_from_beyond_the_windows(demo: httpx.Client, name: str) -> None:
    """Two layers of window 128 and the convolutions reach about 270 tokens; only the recurrence reaches further."""
    between = demo.post("/tokenize", json={"messages": far(name)[2:6], "add_generation_prompt": False}).json()["count"]
    assert between > 300
    assert ask(demo, far(name)) == f"Your name is {name}."


def test_32_conversations_at_once_do_not_mix(demo: httpx.Client) -> None:
    alone = [ask(demo, near(name)) for name in NAMES]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda name: ask(demo, near(name)), NAMES))
    assert together == alone
    assert together == [f"Your name is {name}." for name in NAMES]
    page = demo.get("/metrics").text
    assert "roost_compiles_since_ready_total 0.0" in page
