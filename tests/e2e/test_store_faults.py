"""Faults of the store in real server processes: nothing is lost in silence, and requests that need no store go on."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import PostgresqlServer
from server_process import SHAPES, ServerProcess, launched

pytestmark = [pytest.mark.robust, pytest.mark.timeout(600)]

FAULTY = str(Path(__file__).parent / "faulty_server.py")
LONG = {"input": "Tell me everything.", "ignore_eos": True, "max_output_tokens": 3000, "background": True}
NOWHERE = "/sys/roost-checkpoints"
"""A folder that not even root can make."""


@pytest.fixture(scope="module")
def model(tiny_config: Path) -> str:
    return f"random:{tiny_config}"


def respond(server: ServerProcess, **fields: Any) -> httpx.Response:
    body = {"input": "hi", "max_output_tokens": 4, "ignore_eos": True, **fields}
    return httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)


def ended(server: ServerProcess, response_id: str) -> dict[str, Any]:
    """A background response once it has ended."""
    deadline = time.monotonic() + 120
    while True:
        response = httpx.get(f"{server.url}/v1/responses/{response_id}", timeout=60).raise_for_status().json()
        if response["status"] != "in_progress":
            return dict(response)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def text_of(response: dict[str, Any]) -> str:
    return str(response["output"][0]["content"][0]["text"])


def lines(server: ServerProcess, part: str) -> list[str]:
    """Lines of the log with a text in them; none may be a stack trace."""
    log = server.log.read_text()
    assert "Traceback" not in log, log
    return [line for line in log.splitlines() if part in line]


def test_a_full_database_refuses_what_it_cannot_store(model: str, tmp_path: Path) -> None:
    """The client learns it, the log says it in a line, and with room again all is as before."""
    database = f"sqlite:///{tmp_path / 'responses.db'}"
    with launched(model, *SHAPES, "--store", database, program=(FAULTY, "full"), programs="tiny") as server:
        stored = []
        while (response := respond(server, metadata={"fill": "x" * 500})).status_code == 200:
            stored.append(response.json())
        assert (response.status_code, response.json()["error"]["message"]) == (507, "the store of responses is full")
        assert len(stored) > 5
        assert respond(server, background=True).status_code == 507
        events = [line for line in respond(server, stream=True).text.splitlines() if line.startswith("data: ")]
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["type"] == "response.failed", "it is not stored, and says so"
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
    with (
        launched(model, *options, programs="tiny") as owner,
        launched(model, *options, programs="tiny") as other,
    ):
        (warning,) = lines(owner, "checkpoints cannot be written")
        assert NOWHERE in warning
        response_id = respond(owner, **body).json()["id"]
        owner.process.send_signal(signal.SIGTERM)
        assert owner.ends() == 0
        assert lines(owner, "checkpoints cannot be written") == [warning], "once"
        response = ended(other, response_id)
        assert "inexact" not in response
        assert text_of(response) == text_of(respond(other, **{**body, "background": False}).json())
