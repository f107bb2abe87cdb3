"""nginx, HAProxy, Caddy and Envoy in front of the server, set up by the files of deploy/proxies."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from ports import free_port
from programs import program
from proxies import caddy, envoy, haproxy, nginx, running
from questions import ANSWER, QUESTION
from server_process import API_KEY, ServerProcess

HEADERS = {"authorization": f"Bearer {API_KEY}"}
LONG = {"max_tokens": 100_000, "min_tokens": 100_000}
"""Options of a generation that no test waits for, but that the server accepts."""


@pytest.fixture(params=[nginx, haproxy, caddy, envoy], ids=lambda proxy: proxy.__name__, scope="module")
def proxy(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Yields the address of a proxy."""
    port = free_port()
    with request.param([server.url.removeprefix("http://")], tmp_path_factory.mktemp("proxy"), port):
        yield f"http://127.0.0.1:{port}"


def ask(**fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 50, **fields}


def slots_used(server: ServerProcess) -> float:
    text = httpx.get(f"{server.url}/metrics", headers=HEADERS, timeout=30).text
    found = re.search(r"^roost_slots_used (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


def wait_for_slots(server: ServerProcess, number: int) -> None:
    deadline = time.monotonic() + 60
    while slots_used(server) != number:
        assert time.monotonic() < deadline, f"{slots_used(server):g} slots are used, and not {number}"
        time.sleep(0.05)


@contextmanager
def abandons(server: ServerProcess) -> Iterator[None]:
    """Checks that one request in the `with` block ends by its client's disconnect, not by its completion."""
    before = server.log.read_text().count("/v1/chat/completions 499 ")
    yield
    wait_for_slots(server, 0)
    deadline = time.monotonic() + 60
    while (log := server.log.read_text()).count("/v1/chat/completions 499 ") != before + 1:
        assert time.monotonic() < deadline, log[-2000:]
        time.sleep(0.05)


def connect(proxy: str, body: dict[str, object]) -> socket.socket:
    """Sends a request and returns its connection, from which nothing has been read."""
    content = json.dumps(body).encode()
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: roost",
        f"authorization: Bearer {API_KEY}",
        "content-type: application/json",
        f"content-length: {len(content)}",
    ]
    connection = socket.create_connection(("127.0.0.1", int(proxy.rsplit(":", 1)[1])))
    connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
    return connection


def test_chat(proxy: str) -> None:
    reply = (
        httpx.post(f"{proxy}/v1/chat/completions", json=ask(), headers=HEADERS, timeout=60).raise_for_status().json()
    )
    assert ANSWER in reply["choices"][0]["message"]["content"]


def test_stream_is_not_held_back(proxy: str, server: ServerProcess) -> None:
    """Text arrives while the request runs, which then continues with tokens without text."""
    body = ask(stream=True, max_tokens=100_000, ignore_eos=True)
    with httpx.stream("POST", f"{proxy}/v1/chat/completions", json=body, headers=HEADERS, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = reply.iter_lines()  # closes the connection once nothing refers to it
        text = ""
        while ANSWER not in text:
            if (line := next(lines)).startswith("data: "):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
        wait_for_slots(server, 1)
    wait_for_slots(server, 0)


def test_client_that_leaves_a_stream_frees_its_slot(proxy: str, server: ServerProcess) -> None:
    with abandons(server), connect(proxy, ask(stream=True, **LONG)) as connection:
        assert connection.recv(1)
        wait_for_slots(server, 1)


def test_client_that_leaves_before_its_answer_frees_its_slot(proxy: str, server: ServerProcess) -> None:
    with abandons(server), connect(proxy, ask(**LONG)):
        wait_for_slots(server, 1)


def test_others_keep_their_slots(proxy: str, server: ServerProcess) -> None:
    """A proxy reuses connections; one client's disconnect ends no other request."""
    replies: list[httpx.Response] = []

    def stay() -> None:
        body = ask(max_tokens=300, ignore_eos=True)
        replies.append(httpx.post(f"{proxy}/v1/chat/completions", json=body, headers=HEADERS, timeout=120))

    stays = [threading.Thread(target=stay) for _ in range(2)]
    with abandons(server):
        with connect(proxy, ask(**LONG)):
            wait_for_slots(server, 1)
            for thread in stays:
                thread.start()
        for thread in stays:
            thread.join(timeout=120)
    assert [reply.json()["usage"]["completion_tokens"] for reply in replies] == [300, 300]


def test_errors_pass(proxy: str) -> None:
    reply = httpx.post(f"{proxy}/v1/chat/completions", json=ask(temperature=9), headers=HEADERS, timeout=60)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "temperature"
    assert httpx.get(f"{proxy}/v1/models", timeout=60).status_code == 401


@pytest.mark.parametrize("check", ["", "option httpchk", "option httpchk GET /health/ready"])
def test_health_checks_of_haproxy(server: ServerProcess, tmp_path: Path, check: str) -> None:
    """A TCP check, HAProxy's default request and the documented one report the server as up."""
    port, stats = free_port(), tmp_path / "stats"
    config = f"""\
global
    stats socket {stats}
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    timeout check 5s
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    {check}
    server roost {server.url.removeprefix("http://")} check inter 50ms rise 1 fall 1
"""
    (tmp_path / "haproxy.cfg").write_text(config)
    with running([program("haproxy", "haproxy"), "-db", "-f", str(tmp_path / "haproxy.cfg")], port):
        deadline = time.monotonic() + 30
        while (status := check_status(stats)) not in ("L7OK", "L4OK"):
            assert time.monotonic() < deadline, status
            time.sleep(0.05)
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=HEADERS, timeout=30).is_success


def check_status(stats: Path) -> str:
    """Returns the result of HAProxy's last check, without the mark of a check in progress."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(stats))
        connection.sendall(b"show stat\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    names = text.splitlines()[0].removeprefix("# ").split(",")
    rows = [dict(zip(names, line.split(","), strict=False)) for line in text.splitlines()[1:]]
    (row,) = [row for row in rows if row.get("svname") == "roost"]
    return row["check_status"].removeprefix("* ")
