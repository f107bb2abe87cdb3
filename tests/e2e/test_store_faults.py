"""Faults of the store in real server processes: nothing is lost in silence, and requests that need no store go on."""

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import PostgresqlServer
from failover import query, until
from ports import free_port
from proxies import nginx
from server_process import SHAPES, ServerProcess, launched, metric, respond

pytestmark = [pytest.mark.robust, pytest.mark.timeout(600)]

FAULTY = str(Path(__file__).parent / "faulty_server.py")
LONG = {"input": "Tell me everything.", "ignore_eos": True, "max_output_tokens": 3000, "background": True}
NOWHERE = "/sys/roost-checkpoints"
"""A folder that not even root can make."""


@pytest.fixture(scope="module")
def model(tiny_config: Path) -> str:
    return f"random:{tiny_config}"


def load_of(server: ServerProcess) -> dict[str, int]:
    return dict(httpx.get(f"{server.url}/load", timeout=60).json())


def tokens(server: ServerProcess) -> float:
    """Returns the number of tokens that a server has processed since its start."""
    return metric(server, "roost_prompt_tokens_total") + metric(server, "roost_generation_tokens_total")


def ended(server: ServerProcess, response_id: str) -> dict[str, Any]:
    """A background response once it has ended."""

    def found() -> dict[str, Any]:
        return dict(httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60).raise_for_status().json())

    until(lambda: found()["status"] != "in_progress")
    return found()


def text_of(response: dict[str, Any]) -> str:
    return str(response["output"][0]["content"][0]["text"])


def lines(server: ServerProcess, part: str) -> list[str]:
    """Lines of the log with a text in them; none may be a stack trace."""
    log = server.log.read_text()
    assert "Traceback" not in log, log
    return [line for line in log.splitlines() if part in line]


def test_a_full_database_refuses_what_it_cannot_store(model: str, tmp_path: Path) -> None:
    """The client learns it, nothing more is computed, and the log says it in a line. With room all is as before."""
    database = f"sqlite:///{tmp_path / 'responses.db'}"
    with launched(model, *SHAPES, "--store", database, program=(FAULTY, "full"), programs="tiny") as server:
        stored = []
        while (response := respond(server, store=True, metadata={"fill": "x" * 500})).status_code == 200:
            stored.append(response.json())
        assert (response.status_code, response.json()["error"]["code"]) == (507, "response_not_stored")
        assert len(stored) > 5
        num_tokens = tokens(server)
        for fields in ({}, {"store": True}, {"background": True}, {"stream": True}):
            refused = respond(server, **fields)
            assert (refused.status_code, refused.json()["error"]["message"]) == (507, "the store of responses is full")
        assert tokens(server) == num_tokens
        assert respond(server, store=False).status_code == 200
        for each in stored:
            assert httpx.get(f"{server.url}/v1/responses/{each['id']}", timeout=60).json() == each
        assert len(lines(server, "database or disk is full")) == 1
        for each in stored:
            assert httpx.delete(f"{server.url}/v1/responses/{each['id']}", timeout=60).status_code == 200
        assert respond(server).status_code == 200
        assert len(lines(server, "can be used again")) == 1


@contextmanager
def slow_proxy(port: int, seconds: float) -> Iterator[int]:
    """Passes what comes on to a port of this machine, in both directions, each piece after a delay; yields its port."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                time.sleep(seconds)
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def connect(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                connections.append(threading.Thread(target=connect, args=(client,)))
                connections[-1].start()

    connections: list[threading.Thread] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        accepting = threading.Thread(target=accept, args=(listener,))
        accepting.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
    for connection in connections:
        connection.join()


def test_a_slow_database_delays_only_what_it_stores(model: str, postgresql: PostgresqlServer) -> None:
    with slow_proxy(postgresql.port, seconds=0.1) as port:
        url = postgresql.url.replace(str(postgresql.port), str(port))
        with launched(model, *SHAPES, programs="tiny", ROOST_STORE=url) as server:
            response_id = respond(server, **LONG, stream=False).json()["id"]
            started = time.monotonic()
            assert respond(server, store=True).status_code == 200
            stored_s = time.monotonic() - started
            assert stored_s > 0.4, "two directions of at least two statements"
            fastest_s = stored_s
            for _ in range(5):
                started = time.monotonic()
                assert respond(server, store=False).status_code == 200
                fastest_s = min(fastest_s, time.monotonic() - started)
            assert fastest_s < stored_s / 2
            response = ended(server, response_id)
            assert response["usage"]["output_tokens"] == LONG["max_output_tokens"]
            page = httpx.get(f"{server.url}/metrics", timeout=60).text
            assert "roost_store_fencing_refusals_total 0.0" in page
            assert "roost_store_adoptions_total 0.0" in page
            assert not lines(server, "WARNING")


def test_a_folder_that_cannot_be_written_costs_the_checkpoints_only(model: str, tmp_path: Path) -> None:
    """Another replica decodes what there is again, and the text is that of an undisturbed response."""
    store = ("--store", f"sqlite:///{tmp_path / 'responses.db'}", "--state-store", NOWHERE)
    options = (*SHAPES, *store, "--checkpoint-seconds", "0.2", "--drain-timeout", "0")
    body = {**LONG, "max_output_tokens": 20_000, "seed": 3}
    with launched(model, *options, programs="tiny") as owner, launched(model, *options, programs="tiny") as other:
        (warning,) = lines(owner, "checkpoints cannot be written")
        assert NOWHERE in warning
        response_id = respond(owner, **body).json()["id"]
        owner.process.send_signal(signal.SIGTERM)
        assert owner.ends() == 0
        assert lines(owner, "checkpoints cannot be written") == [warning], "once"
        response = ended(other, response_id)
        assert "inexact" not in response
        assert text_of(response) == text_of(respond(other, **{**body, "background": False}).json())


# --- a fleet whose database goes away under load

AWAY_S = 30.0
AVAILABLE = 'roost_store_available{feature="responses"}'
ENDED = [f'roost_requests_total{{reason="{reason}"}}' for reason in ("stop", "length", "abort", "error")]
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "stream": {"stream": True},
    "stored": {"store": True},
    "stored stream": {"store": True, "stream": True},
    "conversation": {"conversation": True},
    "background": {"background": True},
}


@dataclass
class Clients:
    """Clients of several servers, and what they got.

    Attributes:
      url: Address of the proxy.
      is_over: Set when clients end after their present request.
      is_back: Set unless the database is away, when nobody asks for background responses.
      answers: Responses that clients got, by kind.
      others: Number of all other answers, by kind and code.
    """

    url: str
    is_over: threading.Event = field(default_factory=threading.Event)
    is_back: threading.Event = field(default_factory=threading.Event)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    others: Counter[tuple[str, str]] = field(default_factory=Counter)

    def run(self, kind: str) -> None:
        """Sends requests of a kind, one after the other."""
        with httpx.Client(base_url=self.url, timeout=300) as client:
            while not self.is_over.is_set():
                answer = self.answer(client, **KINDS[kind])
                if answer.get("error") is None:
                    self.answers[kind].append(answer)
                else:
                    self.others[kind, answer["error"]["code"]] += 1
                    time.sleep(0.2)

    def answer(self, client: httpx.Client, **fields: Any) -> dict[str, Any]:
        """Returns a response, or the body of an error."""
        if "conversation" in fields:
            made = client.post("/v1/conversations", json={}).json()
            if "error" in made:
                return dict(made)
            fields["conversation"] = made["id"]
        body = {"input": "Tell me everything.", "max_output_tokens": 200, "ignore_eos": True, **fields}
        response = client.post("/v1/responses", json=body)
        if response.status_code == 200 and "stream" in fields:
            *_, last = (line for line in response.text.splitlines() if line.startswith("data: "))
            return dict(json.loads(last.removeprefix("data: "))["response"])
        answer = dict(response.json())
        while answer.get("status") in ("queued", "in_progress"):
            self.is_back.wait()
            time.sleep(0.2)
            found = client.get(f"/v1/responses/{answer['id']}")
            answer = dict(found.json()) if found.status_code == 200 else answer
        return answer


def test_a_fleet_computes_nothing_that_it_cannot_store(
    model: str, tmp_path: Path, postgresql: PostgresqlServer
) -> None:
    """Three replicas behind nginx: each answer that a client got counts as usage once, and nothing else does."""
    port = free_port()
    clients = Clients(f"http://127.0.0.1:{port}")
    clients.is_back.set()
    names = [(kind, number) for kind in KINDS for number in range(2)]
    threads = {name: threading.Thread(target=clients.run, args=(name[0],)) for name in names}
    with ExitStack() as stack:
        options = (model, *SHAPES, "--simulate", "v5e", "--access-log", "off")
        replicas = [stack.enter_context(launched(*options, ROOST_STORE=postgresql.url)) for _ in range(3)]
        stack.enter_context(nginx([each.url.removeprefix("http://") for each in replicas], tmp_path, port))
        stack.callback(clients.is_back.set)
        stack.callback(clients.is_over.set)
        for thread in threads.values():
            thread.start()
        until(lambda: all(clients.answers.values()))
        clients.is_back.clear()
        postgresql.stop()
        stopped = time.monotonic()
        until(lambda: not any(metric(each, AVAILABLE) for each in replicas))
        detected_s = time.monotonic() - stopped
        until(lambda: not any(load_of(each)["server_load"] for each in replicas))
        num_tokens, num_others = sum(map(tokens, replicas)), clients.others.total()
        time.sleep(max(stopped + AWAY_S - time.monotonic(), 0))
        num_refused = clients.others.total() - num_others
        num_tokens = sum(map(tokens, replicas)) - num_tokens
        clients.is_over.set()
        for (kind, _), thread in threads.items():
            if kind != "background":
                thread.join()
        postgresql.start()
        for each in replicas:
            first = respond(each, store=True)
            assert (first.status_code, first.json()["store"]) == (200, True), first.text
            clients.answers["stored"].append(first.json())
        clients.is_back.set()
        for thread in threads.values():
            thread.join()
        num_computed = int(sum(metric(each, name) for each in replicas for name in ENDED))
        num_adopted = int(sum(metric(each, "roost_store_adoptions_total") for each in replicas))
        for each in replicas:
            each.process.send_signal(signal.SIGTERM)
        for each in replicas:
            assert each.ends() == 0
            lines(each, "")
    got = [answer for answers in clients.answers.values() for answer in answers]
    num_lost = sum(count for (_, code), count in clients.others.items() if code != "store_unavailable")
    usage = "SELECT sum(num_requests), sum(completion_tokens) FROM roost_usage"
    ((num_requests, completion_tokens),) = query(postgresql, usage)
    print(f"\nnoticed after {detected_s:.1f} s; then {num_refused} refusals and {num_tokens} tokens")
    print({kind: len(answers) for kind, answers in clients.answers.items()}, dict(clients.others))
    print(f"{sum(not answer['store'] for answer in got)} answers were not stored, {num_adopted} were adopted")
    print(f"usage: {num_requests} requests, {completion_tokens} tokens; generations: {num_computed}")
    assert (num_refused > 0, num_tokens) == (True, 0)
    assert num_computed - num_adopted == len(got) + num_lost, "at most once in the fleet"
    assert num_requests == len(got)
    assert completion_tokens == sum(answer["usage"]["output_tokens"] for answer in got)
