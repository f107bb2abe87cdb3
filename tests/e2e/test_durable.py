"""Real replicas with one database, of which those that own a response are killed, stopped and frozen.

`DURABLE_DEATHS=13 python3 dev.py test-robust tests/e2e/test_durable.py` interrupts four responses thirteen times each.
"""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import PostgresqlServer
from replicas import Replicas, read_events, write_model
from server_process import SLOTS, ServerProcess, metric, until

pytestmark = [pytest.mark.robust, pytest.mark.timeout(1800)]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "durable-responses.md"

OTHER_SLOTS = 12

DEADLY_SEED = 13
"""Seed of a request that kills its server, if the server has that fault."""

NUM_TOKENS = 8_000
"""Number of tokens of a response that three owners generate."""

MANY_TOKENS = 20_000
"""Number of tokens of the documented response, and of one that outlasts ten seconds without a database."""

BODY = {
    "input": "Tell me everything.",
    "background": True,
    "stream": True,
    "ignore_eos": True,
    "max_output_tokens": NUM_TOKENS,
    "seed": 7,
}


@pytest.fixture
def replicas(address: str, tmp_path: Path) -> Iterator[Replicas]:
    with ExitStack() as stack:
        yield Replicas(stack, write_model(tmp_path), address, tmp_path / "states")


def begun(server: ServerProcess, **fields: Any) -> str:
    """Starts a response, and returns its id from the first event."""
    with httpx.stream("POST", f"{server.url}/v1/responses", json={**BODY, **fields}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
        return str(json.loads(first.removeprefix("data: "))["response"]["id"])


def check_whole(
    events: list[dict[str, Any]], server: ServerProcess, response_id: str, num_tokens: int = NUM_TOKENS
) -> dict[str, Any]:
    """Checks that nothing is missing or repeated, and returns the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete", events[-1]["response"]["error"]
    assert final["usage"]["output_tokens"] == num_tokens
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert final["output"][0]["content"][0]["text"] == text
    assert httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60).json() == final
    return dict(final)


def owner_of(replicas: Replicas) -> ServerProcess:
    """The replica that generates now."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for server in replicas.running:
            if metric(server, "roost_num_requests_running"):
                return server
        time.sleep(0.05)
    pytest.fail("nobody generates")


def undisturbed(server: ServerProcess, **fields: Any) -> str:
    """The text of the same response, made by one replica."""
    body = {**BODY, "background": False, "stream": False, **fields}
    made = httpx.post(f"{server.url}/v1/responses", json=body, timeout=1200)
    return str(made.json()["output"][0]["content"][0]["text"])


def test_a_stream_survives_three_owners(replicas: Replicas) -> None:
    """Two of them are killed, one is stopped. A client goes on from its last event, at another replica.

    Some have more slots than others, and so other shapes of their steps, which changes no bit.
    """
    draw = random.Random(1)
    for slots in (SLOTS, OTHER_SLOTS, OTHER_SLOTS, SLOTS):
        last = replicas.start(slots)
    response_id = begun(last)
    events: list[dict[str, Any]] = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        owner = owner_of(replicas)
        other = next(server for server in replicas.running if server is not owner)
        events += read_events(other.url, response_id, len(events) - 1, draw.randrange(3, 12))
        replicas.end(owner, number)
    (left,) = replicas.running
    events += read_events(left.url, response_id, len(events) - 1)
    final = check_whole(events, left, response_id)
    assert "inexact" not in final
    assert final["output"][0]["content"][0]["text"] == undisturbed(left)
    assert metric(left, "roost_store_adoptions_total") == 1


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_the_documented_lines_survive_three_deaths(replicas: Replicas, tmp_path: Path) -> None:
    """They print the text of an undisturbed response of as many tokens, while its owners are killed."""
    for _ in range(4):
        replicas.start()
    (lines,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    urls = json.dumps([f"{server.url}/v1" for server in replicas.running])
    lines = lines.replace('["http://localhost:8000/v1"]', urls)
    lines = lines.replace('"extra_body": {', '"extra_body": {"seed": 7, ')
    assert urls in lines
    assert f'"max_output_tokens": {MANY_TOKENS:_},' in lines
    with (tmp_path / "printed").open("w") as printed:
        client = subprocess.Popen([sys.executable, "-c", lines], stdout=printed, env={**os.environ, "PYTHONUTF8": "1"})
    try:
        for _ in range(3):
            owner = owner_of(replicas)
            time.sleep(0.5)
            replicas.end(owner, signal.SIGKILL)
        assert client.wait(1200) == 0
    finally:
        client.kill()
    (left,) = replicas.running
    assert metric(left, "roost_store_adoptions_total") == 1
    whole = undisturbed(left, ignore_eos=False, min_tokens=MANY_TOKENS, max_output_tokens=MANY_TOKENS)
    assert (tmp_path / "printed").read_bytes().decode() == whole


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_a_stream_in_the_foreground_goes_on_elsewhere(replicas: Replicas) -> None:
    """Its owner is stopped. Its last event names the path under which another replica has the rest."""
    owner, other = replicas.start(), replicas.start()
    events: list[dict[str, Any]] = []
    num_tokens = 5000
    body = {**BODY, "background": False, "max_output_tokens": num_tokens}
    with httpx.stream("POST", f"{owner.url}/v1/responses", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == 500:
                    replicas.running.remove(owner)
                    owner.process.send_signal(signal.SIGTERM)
    moved = events.pop()
    assert (moved["type"], moved["code"]) == ("error", "stream_moved")
    assert moved["sequence_number"] == len(events) - 1 >= 500
    assert owner.ends() == 0
    response_id = moved["response_id"]
    assert moved["resume"] == f"/v1/responses/{response_id}?stream=true&starting_after={len(events) - 1}"
    events += read_events(other.url, response_id, len(events) - 1)
    final = check_whole(events, other, response_id, num_tokens)
    assert "inexact" not in final
    assert final["output"][0]["content"][0]["text"] == undisturbed(other, max_output_tokens=num_tokens)
    assert list(replicas.states.iterdir()) == []


@contextmanager
def no_writer(address: str) -> Iterator[None]:
    """Keeps replicas from writing to SQLite, in which a process that is frozen in a transaction blocks all others.

    PostgreSQL ends the transactions of such a process after some seconds.
    """
    if not address.startswith("sqlite"):
        yield
        return
    with closing(sqlite3.connect(address.removeprefix("sqlite://"), timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def test_a_frozen_owner_comes_back_and_writes_nothing(address: str, replicas: Replicas) -> None:
    owner, other = replicas.start(), replicas.start()
    response_id = begun(owner)
    events = read_events(other.url, response_id, -1, 5)
    with no_writer(address):
        owner.process.send_signal(signal.SIGSTOP)
    try:
        events += read_events(other.url, response_id, len(events) - 1)
    finally:
        owner.process.send_signal(signal.SIGCONT)
    # Its next write is refused, unless it sees before that its lease has ended.
    until(lambda: not metric(owner, "roost_num_requests_running"))
    check_whole(events, other, response_id)
    check_whole(read_events(owner.url, response_id, -1), owner, response_id)
    assert metric(other, "roost_store_adoptions_total") == 1
    for server in tuple(replicas.running):
        replicas.end(server, signal.SIGTERM)


NUM_DEATHS = int(os.environ.get("DURABLE_DEATHS", "5"))
"""Deaths of replicas with up to four responses each. There are more if some had fewer."""

TOKENS_PER_DEATH = 3200
"""Tokens of each of the four, which take several times as long as the start of a replica."""


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_four_responses_survive_every_death(replicas: Replicas) -> None:
    """Replicas die at random moments, by SIGTERM and by SIGKILL; some leave torn checkpoints behind.

    Three die by SIGKILL at most: a response that loses more owners so, while it runs alone, is to blame for them.
    """
    draw, death, num_interruptions, num_tokens = random.Random(2), 0, 0, TOKENS_PER_DEATH * NUM_DEATHS
    for _ in range(2):
        first = replicas.start()
    names = [begun(first, seed=seed, max_output_tokens=num_tokens) for seed in range(4)]
    while death < NUM_DEATHS or num_interruptions < 2 * NUM_DEATHS:
        owner = owner_of(replicas)
        time.sleep(draw.uniform(0.1, 1.0))
        num_interruptions += int(metric(owner, "roost_num_requests_running"))
        replicas.end(owner, signal.SIGKILL if death in (0, 4, 8) else signal.SIGTERM)
        if death % 3 == 0:
            for path in replicas.states.iterdir():
                path.write_bytes(path.read_bytes()[: draw.randrange(1000)])
        replicas.start()
        death += 1
    left = replicas.running[-1]
    finals = [check_whole(read_events(left.url, name, -1), left, name, num_tokens) for name in names]
    assert "Traceback" not in left.log.read_text()
    assert not any("inexact" in final for final in finals)
    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(lambda seed: undisturbed(left, seed=seed, max_output_tokens=num_tokens), range(4)))
    assert [final["output"][0]["content"][0]["text"] for final in finals] == texts


@pytest.mark.parametrize("address", ["postgresql"], indirect=True)
def test_a_response_waits_for_a_database_that_is_away(replicas: Replicas, postgresql: PostgresqlServer) -> None:
    server = replicas.start()
    response_id = begun(server, max_output_tokens=MANY_TOKENS)
    events = read_events(server.url, response_id, -1, 5)
    postgresql.stop()
    time.sleep(10)
    postgresql.start()
    events += read_events(server.url, response_id, len(events) - 1)
    final = check_whole(events, server, response_id, MANY_TOKENS)
    assert "inexact" not in final
    assert final["output"][0]["content"][0]["text"] == undisturbed(server, max_output_tokens=MANY_TOKENS)
    assert metric(server, "roost_store_adoptions_total") == 0
    replicas.end(server, signal.SIGTERM)


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
def test_a_response_that_kills_its_owners_fails_and_no_other(address: str, tmp_path: Path) -> None:
    """Others that share its owners twice are then run one by one, and end as if nothing had happened."""
    with ExitStack() as stack:
        program = (str(Path(__file__).parent / "faulty_server.py"), f"seed-{DEADLY_SEED}")
        replicas = Replicas(stack, write_model(tmp_path), address, tmp_path / "states", program)
        owner = replicas.start()
        innocent = [begun(owner, seed=seed, max_output_tokens=2000) for seed in range(3)]
        with suppress(httpx.TransportError):
            httpx.post(f"{owner.url}/v1/responses", json={**BODY, "seed": DEADLY_SEED}, timeout=60)
        assert owner.ends() == -signal.SIGKILL
        num_deaths = 1
        while (left := replicas.start()) and not ended_at(left, address):
            num_deaths += 1
        assert num_deaths == 5, "two beside the others, and three alone"
        (guilty,) = running_or_ended(address) - set(innocent)
        failed = httpx.get(f"{left.url}/v1/responses/{guilty}", timeout=60).json()
        assert failed["status"] == "failed"
        assert failed["error"]["message"].startswith("3 replicas died while this was the only adopted response")
        for seed, name in enumerate(innocent):
            final = check_whole(read_events(left.url, name, -1), left, name, 2000)
            assert final["output"][0]["content"][0]["text"] == undisturbed(left, seed=seed, max_output_tokens=2000)


def ended_at(server: ServerProcess, address: str) -> bool:
    """Waits until a replica has died, or all responses have ended; returns whether they have."""
    execute(address, "UPDATE roost_running SET lease_until = lease_until - 60")
    deadline = time.monotonic() + 600
    while server.process.poll() is None:
        if not execute(address, "SELECT id FROM roost_responses WHERE is_running = 1"):
            return True
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return False


def running_or_ended(address: str) -> set[str]:
    return {name for (name,) in execute(address, "SELECT id FROM roost_responses")}


def execute(address: str, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(address.removeprefix("sqlite://"), autocommit=True)) as connection:
        return connection.execute(sql).fetchall()
