"""Faults in real server processes: no client waits forever, and a truncated response is never taken for a whole one."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import free_port
from server_process import SHAPES, ServerProcess, launched, metric, serving, start, until

pytestmark = pytest.mark.robust

SIMULATED = ("--simulate", "step_ms=2,prefill_tokens_per_s=100000", "--prefill-chunk", "64")
"""Options for tests of what happens around steps: nothing is compiled, and durations are known."""

FAULTY = str(Path(__file__).parent / "faulty_server.py")
LONG: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 10**7, "ignore_eos": True, "stream": True}
SHORT: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 20, "temperature": 0}


@pytest.fixture(scope="module")
def model(tiny_config: Path) -> str:
    return f"random:{tiny_config}"


@contextmanager
def faulty(fault: str, model: str, *arguments: str, **environment: Any) -> Iterator[ServerProcess]:
    with launched(model, *SHAPES, *arguments, program=(FAULTY, fault), programs="tiny", **environment) as server:
        yield server


def ask(server: ServerProcess, body: dict[str, Any] = SHORT) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=240)


def events(server: ServerProcess, body: dict[str, Any]) -> Generator[dict[str, Any]]:
    """Yields a stream's events; the last one must be `[DONE]` or an error."""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        if response.status_code != 200:
            yield json.loads(response.read())
            return
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def wait_until_unready(server: ServerProcess) -> None:
    until(lambda: httpx.get(f"{server.url}/health/ready", timeout=60).status_code == 503)


# --- the engine


TRIGGERS: dict[str, dict[str, Any]] = {
    "prefill": SHORT,
    "first token": SHORT,
    "decode": LONG,
    "read": LONG,
    "copy": {**SHORT, "n": 2},
    "mask": {**SHORT, "structured_outputs": {"choice": ["abcdefgh", "abcdefgi"]}},
    "score": {**SHORT, "echo": True, "logprobs": 1},
    "restore": SHORT,
}
"""For each kind of device step, a request that needs it."""


@pytest.mark.parametrize("kind", TRIGGERS)
def test_failed_step_ends_every_stream_and_the_process(kind: str, model: str, tmp_path: Path) -> None:
    """Streams that had no part in the step fail too, since the step holds the state of all slots."""
    remembers = () if kind == "restore" else ("--state-cache-gib", "0")  # otherwise a prompt is prefilled only once
    gate = tmp_path / "gate"
    with faulty(kind, model, *remembers, FAULT_GATE=str(gate)) as server:
        others: list[list[dict[str, Any]]] = [[], []]
        readers = [threading.Thread(target=lambda own=own: own.extend(events(server, LONG))) for own in others]
        for reader in readers:
            reader.start()
        until(lambda: all(others))
        gate.touch()
        answers = []
        for _ in range(20):
            try:
                answers.append(ask(server, {**TRIGGERS[kind], "stream": False, "max_tokens": 20}))
            except httpx.HTTPError:  # the process has exited already
                break
            if answers[-1].status_code != 200:
                break
        assert server.ends() == 1
        for reader in readers:
            reader.join(60)
        assert all(own[-1]["error"]["code"] == "engine_unavailable" for own in others)
        assert all(answer.status_code in (200, 503) for answer in answers)
        log = server.log.read_text()
        assert "the engine died: the device caught fire" in log


def test_stuck_step_is_detected(model: str) -> None:
    with faulty("stuck", model, "--step-timeout", "1.5") as server:
        last = list(events(server, LONG))[-1]
        assert last["error"]["code"] == "engine_unavailable"
        assert server.ends() == 1
        assert "a step has taken more than 1.5 s" in server.log.read_text()


def test_nan_parameters_fail_requests(model: str) -> None:
    """Each request fails, and after some failures the process exits."""
    with faulty("numbers", model) as server:
        codes = []
        while len(codes) < 20 and server.process.poll() is None:
            try:
                codes.append(ask(server).json()["error"]["code"])
            except httpx.HTTPError:
                break
        assert codes[:7] == ["numeric_error"] * 7
        assert set(codes) <= {"numeric_error", "engine_unavailable"}
        assert server.ends() == 1
        assert "activations of 8 requests in a row were not finite" in server.log.read_text()


def test_the_time_of_day_does_not_matter(model: str) -> None:
    """The time jumps by twenty years between any two calls; deadlines stay correct."""
    with faulty("clock", model, "--request-timeout", "30") as server:
        answers = [ask(server, SHORT).json() for _ in range(3)]
        assert len({answer["choices"][0]["text"] for answer in answers}) == 1
        assert list(events(server, {**LONG, "timeout": 1}))[-1]["error"]["code"] == "request_timeout"
        server.process.send_signal(signal.SIGTERM)
        assert server.ends() == 0


# --- the process


def test_killed_in_the_middle_of_a_stream(model: str) -> None:
    """Clients see that the response is incomplete; a new process generates the same tokens."""
    with launched(model, *SHAPES, programs="tiny") as server:
        whole = ask(server).json()["choices"][0]["text"]
        stream = events(server, LONG)
        next(stream)
        server.process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            list(stream)
        assert server.ends() == -signal.SIGKILL
    with serving(model, *SHAPES, programs="tiny") as server:
        assert ask(server).json()["choices"][0]["text"] == whole


def test_server_responds_while_it_compiles(model: str) -> None:
    """The server is alive once the model's files have been checked, and ready once everything is compiled."""
    port = free_port()
    process = start("serve", model, "--port", str(port), *SHAPES, "--compile-cache", "off")
    states: list[tuple[int, ...]] = []
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 240
            while not states or states[-1] != (200, 200, 200):
                assert time.monotonic() < deadline
                try:
                    paths = ("/health", "/health/ready", "/v1/models")
                    states.append(tuple(client.get(path).status_code for path in paths))
                except httpx.ConnectError:
                    assert not states, "it answered before"
                time.sleep(0.3)
            assert client.post("/v1/completions", json=SHORT).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert states[0] == (200, 503, 503)
    assert all(state in ((200, 503, 503), (200, 503, 200), (200, 200, 200)) for state in states)


def test_sigterm_drains(model: str) -> None:
    """Running requests are served to their ends, new ones are refused after the lag, and the exit status is 0."""
    many = 40
    options = (*SIMULATED, "--slots", str(many + 1), "--drain-timeout", "600", "--drain-lag", "0.5")
    with launched(model, *options) as server, ThreadPoolExecutor(many) as clients:
        stream = events(server, LONG)  # the server drains until this client leaves
        next(stream)
        others = [clients.submit(ask, server, {**LONG, "stream": False, "max_tokens": 1500}) for _ in range(many)]

        def all_have_begun() -> bool:
            num_ended = sum(other.done() for other in others)
            return num_ended + metric(server, "roost_slots_used") == many + 1

        until(all_have_begun)
        server.process.send_signal(signal.SIGTERM)
        wait_until_unready(server)
        until(lambda: ask(server).status_code != 200)
        refused = ask(server)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        usages = [other.result().json()["usage"] for other in others]
        assert [usage["completion_tokens"] for usage in usages] == [1500] * many, "they had time"
        assert "error" not in next(stream)
        stream.close()
        assert server.ends() == 0
        assert "Traceback" not in server.log.read_text()


def test_second_signal_exits_at_once(model: str) -> None:
    with launched(model, *SIMULATED, "--slots", "4", "--drain-timeout", "600") as server:
        stream = events(server, LONG)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        wait_until_unready(server)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.ends() == 128 + signal.SIGTERM
        with pytest.raises(httpx.HTTPError):
            list(stream)


def test_frozen_process_continues(model: str) -> None:
    """The process is stopped for longer than the step timeout, as when a machine sleeps."""
    with serving(model, *SHAPES, "--step-timeout", "5", programs="tiny") as server:
        stream = events(server, {**LONG, "max_tokens": 3000})
        next(stream)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(7)
        server.process.send_signal(signal.SIGCONT)
        assert "error" not in list(stream)[-1]


# --- the client


def test_deadlines(model: str) -> None:
    """Deadlines of requests hold in the queue and in total, for streams and whole responses."""
    with serving(model, *SIMULATED, "--slots", "1") as server:
        stream = events(server, LONG)
        next(stream)
        waiting = ask(server, {**SHORT, "queue_timeout": 0.5})
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "queue_timeout")
        late = ask(server, {**SHORT, "timeout": 0.5})
        assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
        stream.close()
        *tokens, last = events(server, {**LONG, "timeout": 5})
        assert tokens
        assert last["error"]["code"] == "request_timeout"
        assert ask(server).status_code == 200


def test_retry_after_of_refused_clients_is_right(model: str) -> None:
    """Clients that wait as told are served."""
    with serving(model, *SIMULATED, "--slots", "1", "--max-queue", "1") as server:
        body = {**SHORT, "max_tokens": 200, "ignore_eos": True}
        ask(server, body)
        outcomes: list[int] = []

        def persist() -> None:
            for _ in range(100):
                answer = ask(server, body)
                outcomes.append(answer.status_code)
                if answer.status_code != 429:
                    return
                time.sleep(int(answer.headers["retry-after-ms"]) / 1000)

        clients = [threading.Thread(target=persist) for _ in range(16)]
        for each in clients:
            each.start()
        for each in clients:
            each.join(240)
        assert outcomes.count(200) == 16
        assert 0 < outcomes.count(429) < 160


# --- the disk


def unshared(tmp_path: Path, options: str) -> tuple[list[str], Path]:
    """Returns a command that runs another one with a small file system mounted at a folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    wrapper = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    wrapper += [f'mount -t tmpfs -o mode=700,{options} tmpfs "{folder}" && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*wrapper, "true"], capture_output=True).returncode != 0:
        pytest.skip("no file systems can be mounted here")
    return wrapper, folder


@pytest.mark.parametrize(
    ("options", "reason"), [("size=64k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_no_room_for_compiled_programs(options: str, reason: str, tmp_path: Path, model: str) -> None:
    wrapper, folder = unshared(tmp_path, options)
    with serving(model, *SHAPES, "--compile-cache", str(folder), wrapper=wrapper) as server:
        assert ask(server).status_code == 200
        log = server.log.read_text()
        assert f"WARNING - compile_cache {folder}: no program will be kept there ({reason})" in log
        assert "UserWarning" not in log, "one line is enough"


def test_a_disk_that_fills_up_while_programs_are_kept(tmp_path: Path, model: str) -> None:
    wrapper, folder = unshared(tmp_path, "size=1100k")  # programs of all default shapes take more
    with serving(model, "--slots", "4", "--compile-cache", str(folder), wrapper=wrapper) as server:
        assert ask(server).status_code == 200


def test_truncated_programs_are_compiled_again(tmp_path: Path, model: str) -> None:
    """The files look as if their writer had been killed."""
    folder = tmp_path / "programs"
    with serving(model, *SHAPES, "--compile-cache", str(folder)) as server:
        whole = ask(server).json()["choices"][0]["text"]
    files = [path for path in folder.iterdir() if path.stat().st_size > 1000]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    with serving(model, *SHAPES, "--compile-cache", str(folder)) as server:
        assert ask(server).json()["choices"][0]["text"] == whole
