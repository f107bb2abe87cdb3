"""Background responses under load whose owners are killed at random moments: JSON, tool calls and free text.

`ADOPTIONS=50 python3 dev.py test-robust tests/e2e/test_adoptions.py` takes 50 adoptions for each kind of database, with
grammars as fast as they are and with slow ones: 200 in all.
"""

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from replicas import Replicas, read_events, write_model
from server_process import PROGRAM, ServerProcess, metric

pytestmark = [pytest.mark.robust, pytest.mark.timeout(1800)]

FAULTY = str(Path(__file__).parent / "faulty_server.py")

NUM_ADOPTIONS = int(os.environ.get("ADOPTIONS", "4"))
CASES = [("sqlite", True), ("postgresql", False)]
if "ADOPTIONS" in os.environ:
    CASES += [("sqlite", False), ("postgresql", True)]

NUM_OPEN = 8
"""Responses that are open at a time, on two replicas of four slots each."""

KINDS = ("json", "tool", "free")
NUM_SEEDS = 3
MAX_KILLS = 3 * NUM_ADOPTIONS
MAX_SEEN = 8
"""Most replicas that end while a response is open. Half of them are killed. With one more death of an owner that ran it
alone, a response would not run again.
"""

NUM_FREE_TOKENS = 2000


def schema(num_items: int) -> dict[str, Any]:
    """Returns the schema of a long list."""
    item = {
        "type": "object",
        "properties": {
            "name": {"enum": ["oak", "ash", "elm"]},
            "height": {"type": "integer", "minimum": 0, "maximum": 999},
        },
        "required": ["name", "height"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"trees": {"type": "array", "items": item, "minItems": num_items, "maxItems": num_items}},
        "required": ["trees"],
        "additionalProperties": False,
    }


def body(kind: str, seed: int, num_items: int) -> dict[str, Any]:
    """Returns a request; `kind` is json, tool or free."""
    common = {"input": "Tell me of all trees.", "seed": seed, "temperature": 1.0, "max_output_tokens": 20_000}
    if kind == "json":
        return {**common, "text": {"format": {"type": "json_schema", "name": "list", "schema": schema(num_items)}}}
    if kind == "tool":
        tool = {"type": "function", "name": "plant", "parameters": schema(num_items)}
        return {**common, "tools": [tool], "tool_choice": "required"}
    return {**common, "ignore_eos": True, "max_output_tokens": NUM_FREE_TOKENS}


def said(response: dict[str, Any]) -> list[Any]:
    """Returns the content of a response without its ids."""
    return [each.get("arguments") or each["content"][0]["text"] for each in response["output"]]


def undisturbed(server: ServerProcess, kind: str, seed: int, num_items: int) -> list[Any]:
    """Returns the content of the same response, made by one replica."""
    made = httpx.post(f"{server.url}/v1/responses", json=body(kind, seed, num_items), timeout=600).json()
    check_allowed(kind, made, num_items)
    return said(made)


def check_allowed(kind: str, response: dict[str, Any], num_items: int) -> None:
    """Checks that a response has ended well, and its content against its schema."""
    assert response["status"] == ("incomplete" if kind == "free" else "completed"), response["error"]
    if kind != "free":
        for each in said(response):
            jsonschema.validate(json.loads(each), schema(num_items))


@pytest.fixture
def is_slow(request: pytest.FixtureRequest) -> bool:
    """Whether every mask comes late."""
    return bool(request.param)


@pytest.fixture
def replicas(address: str, is_slow: bool, tmp_path: Path) -> Iterator[Replicas]:
    program = (FAULTY, "grammar") if is_slow else PROGRAM
    with ExitStack() as stack:
        yield Replicas(stack, write_model(tmp_path), address, tmp_path / "states", program)


def begin(server: ServerProcess, kind: str, seed: int, num_items: int) -> str:
    """Starts a response in the background, and returns its id from the first event."""
    sent = {**body(kind, seed, num_items), "background": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=sent, timeout=60) as response:
        assert response.status_code == 200, response.read()
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
        return str(json.loads(first.removeprefix("data: "))["response"]["id"])


def is_open(server: ServerProcess, response_id: str) -> bool:
    status = httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60).json()["status"]
    return status in ("queued", "in_progress")


def press(server: ServerProcess, is_over: threading.Event) -> None:
    """Sends requests of others until the server dies, one after the other."""
    with suppress(httpx.TransportError), httpx.Client(timeout=60) as client:
        for number in itertools.takewhile(lambda _: not is_over.is_set(), itertools.count()):
            message = [{"role": "user", "content": f"Say {number}."}]
            sent = {"messages": message, "max_tokens": 30, "stream": number % 2 == 1}
            answer = client.post(f"{server.url}/v1/chat/completions", json=sent)
            assert answer.status_code in (200, 429, 503)


def check_events(events: list[dict[str, Any]], final: dict[str, Any]) -> None:
    """Checks that no event is missing or repeated, and that they make the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == final
    kinds = ("response.output_text.delta", "response.function_call_arguments.delta")
    assert "".join(event["delta"] for event in events if event["type"] in kinds) == "".join(said(final))


@pytest.mark.parametrize(("address", "is_slow"), CASES, indirect=True)
def test_adopted_responses_equal_undisturbed_ones(replicas: Replicas, is_slow: bool) -> None:
    """Each has its events without a gap or a repeat, and nothing that its constraint refuses."""
    num_items, draw = 25 if is_slow else 60, random.Random(3)
    begun: dict[str, tuple[str, int]] = {}
    begun_after: dict[str, int] = {}
    unfinished: list[str] = []
    num_adoptions, num_kills, is_over = 0, 0, threading.Event()
    with ThreadPoolExecutor(2 + MAX_KILLS) as threads:
        pressing = [threads.submit(press, replicas.start(), is_over) for _ in range(2)]
        while num_adoptions < NUM_ADOPTIONS and num_kills < MAX_KILLS:
            unfinished = [each for each in unfinished if is_open(replicas.running[0], each)]
            while len(unfinished) < NUM_OPEN:
                case = KINDS[len(begun) % len(KINDS)], len(begun) // len(KINDS) % NUM_SEEDS
                unfinished.append(begin(draw.choice(replicas.running), *case, num_items))
                begun[unfinished[-1]], begun_after[unfinished[-1]] = case, num_kills
            time.sleep(draw.uniform(0.5, 3))
            for response_id in unfinished:
                while num_kills - begun_after[response_id] >= MAX_SEEN and is_open(replicas.running[0], response_id):
                    time.sleep(0.2)
            victim = draw.choice(replicas.running)
            num_adoptions += int(metric(victim, "roost_store_adoptions_total"))
            replicas.end(victim, signal.SIGTERM if num_kills % 2 else signal.SIGKILL)
            num_kills += 1
            pressing.append(threads.submit(press, replicas.start(), is_over))
        other, left = replicas.running
        for response_id in begun:
            while is_open(left, response_id):
                time.sleep(0.2)
        num_adoptions += sum(int(metric(each, "roost_store_adoptions_total")) for each in replicas.running)
        replicas.end(other, signal.SIGKILL)
        is_over.set()
        cases = sorted(set(begun.values()))
        contents = threads.map(lambda case: undisturbed(left, case[0], case[1], num_items), cases)
        alone = dict(zip(cases, contents, strict=True))
        for response_id, (kind, seed) in begun.items():
            final = httpx.get(f"{left.url}/v1/responses/{response_id}", timeout=60).json()
            assert "inexact" not in final
            check_allowed(kind, final, num_items)
            assert said(final) == alone[kind, seed]
            check_events(read_events(left.url, response_id, -1), final)
        replicas.end(left, signal.SIGKILL)
        for each in pressing:
            each.result()
    print(f"{num_adoptions} adoptions of {len(begun)} responses, {num_kills} kills")
    assert num_adoptions, "no response was adopted: nothing was shown"
