"""Three servers behind each proxy of deploy/proxies are restarted in turn."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import free_port
from proxies import caddy, envoy, haproxy, nginx
from questions import QUESTION
from server_process import SHAPES, start

TEXT = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "ignore_eos": True}
NUM_CLIENTS = 4
"""As many requests at a time as one server has slots."""


@dataclass
class Replica:
    """A server on a port that it keeps when it is restarted."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server, and waits until it is ready."""
        own = {"ROOST_DRAIN_LAG": "2", "ROOST_COMPILE_CACHE": str(self.folder), "JAX_PLATFORMS": "cpu"}
        self.process = start("serve", *SHAPES, "--port", str(self.port), stderr=subprocess.DEVNULL, **own)
        deadline = time.monotonic() + 240
        while not self._is_ready():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def stop(self) -> None:
        """Asks the server to end, and waits until it has."""
        assert self.process is not None
        with self.process:  # closes its pipe
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60) == 0

    def kill(self) -> None:
        if self.process is not None:
            with self.process:
                self.process.kill()

    def num_tokens(self) -> float:
        page = httpx.get(f"http://{self.address}/metrics", timeout=30).text
        found = re.search(r"^roost_generation_tokens_total (\S+)$", page, re.MULTILINE)
        assert found
        return float(found[1])

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("programs")
    folder.chmod(0o700)
    with ExitStack() as stack:
        found = [Replica(folder) for _ in range(3)]
        for each in found:
            each.start()
            stack.callback(each.kill)
        yield found


@contextmanager
def asking(url: str, outcomes: list[str]) -> Iterator[None]:
    """Sends whole answers and streams over several connections in the `with` block; notes how each has ended."""
    stopped = threading.Event()

    def ask(number: int) -> None:
        headers = {"x-session-id": f"client {number}"}
        with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
            turn = number
            while not stopped.is_set():
                turn += 1
                outcomes.append(streamed(client) if turn % 2 else whole(client))

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(NUM_CLIENTS)]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        stopped.set()
        for each in clients:
            each.join()


def whole(client: httpx.Client) -> str:
    """Returns how a request has ended whose answer comes at once."""
    try:
        reply = client.post("/v1/chat/completions", json={**TEXT, "max_tokens": 8})
    except httpx.TransportError as error:
        return repr(error)
    return "whole" if reply.status_code == 200 else f"{reply.status_code} {reply.text[:200]}"


def streamed(client: httpx.Client) -> str:
    """Returns how a stream has ended."""
    body: dict[str, Any] = {**TEXT, "max_tokens": 100, "stream": True}
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                return f"{reply.status_code} {reply.read()[:200]!r}"
            lines = [line for line in reply.iter_lines() if line]
    except httpx.TransportError as error:
        return repr(error)
    last = json.loads(lines[-2].removeprefix("data: "))
    is_whole = lines[-1] == "data: [DONE]" and last["choices"][0]["finish_reason"] == "length"
    return "whole" if is_whole else lines[-1][:200]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("proxy", [nginx, haproxy, caddy, envoy], ids=lambda proxy: proxy.__name__)
def test_servers_are_restarted_in_turn(proxy: Any, replicas: list[Replica], tmp_path: Path) -> None:
    """A session stays with one server meanwhile, and no request fails."""
    port, outcomes = free_port(), list[str]()
    with proxy([each.address for each in replicas], tmp_path, port):
        url = f"http://127.0.0.1:{port}"
        until_used(url, replicas)
        before = [each.num_tokens() for each in replicas]
        with httpx.Client(base_url=url, headers={"x-session-id": "a"}, timeout=120) as client:
            assert [whole(client) for _ in range(6)] == ["whole"] * 6
        after = [each.num_tokens() for each in replicas]
        assert sorted(new - old for new, old in zip(after, before, strict=True)) == [0, 0, 48]
        with asking(url, outcomes):
            for each in replicas:
                each.stop()
                each.start()
                until_used(url, replicas)
    assert set(outcomes) == {"whole"}
    assert len(outcomes) > 50


def until_used(url: str, replicas: list[Replica]) -> None:
    """Sends requests with ever new sessions until each server has got one."""
    before, deadline = [each.num_tokens() for each in replicas], time.monotonic() + 60
    for number in range(1000):
        headers = {"x-session-id": f"{number} {time.monotonic()}"}
        httpx.post(f"{url}/v1/chat/completions", json={**TEXT, "max_tokens": 1}, headers=headers, timeout=60)
        if all(each.num_tokens() > old for each, old in zip(replicas, before, strict=True)):
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)
