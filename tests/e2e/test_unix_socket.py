"""A server on a Unix socket, behind a proxy whose headers it trusts."""

import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest
from server_process import run_here, serving, start

SIMULATED = ("--simulate", "v5e")


def wait_until_ready(path: Path, log: Path) -> None:
    deadline = time.monotonic() + 120
    while "is ready on" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_server_listens_on_a_unix_socket(tiny_config: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "roost.sock", tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(str(path))
    with log.open("w") as stderr:
        process = start("serve", f"random:{tiny_config}", *SIMULATED, "--uds", str(path), stderr=stderr)
    try:
        wait_until_ready(path, log)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://roost", timeout=60) as client:
            body = {"prompt": [5], "max_tokens": 2, "stream": True}
            assert client.post("/v1/completions", json=body).text.endswith("data: [DONE]\n\n")
        second = run_here("serve", f"random:{tiny_config}", *SIMULATED, "--uds", str(path))
        assert second.exit_code == 1
        assert second.stderr.splitlines()[-1] == f"roost: --uds {path}: cannot listen there: Address already in use"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()
    assert not path.exists()
    assert re.search(rf"^address +unix:{path}$", log.read_text(), re.MULTILINE)


def wait_for_lines(log: Path, part: str) -> list[str]:
    """Returns the lines with a text in them, once there are any: a request is logged after its response."""
    deadline = time.monotonic() + 60
    while not (found := [line for line in log.read_text().splitlines() if part in line]):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(
    ("trusted", "expected"), [((), "127.0.0.1"), (("--forwarded-allow-ips", "127.0.0.1"), "203.0.113.9")]
)
def test_a_clients_address_is_a_proxys_word_only_if_it_is_trusted(
    tiny_config: Path, trusted: tuple[str, ...], expected: str
) -> None:
    with serving(f"random:{tiny_config}", *SIMULATED, *trusted) as server:
        headers = {"x-forwarded-for": "203.0.113.9", "x-request-id": "mine"}
        httpx.post(f"{server.url}/v1/completions", json={"prompt": [5], "max_tokens": 2}, headers=headers, timeout=60)
        logged = wait_for_lines(server.log, " mine POST /v1/completions 200 ")
    assert [re.findall(r" client=(\S+) ", line) for line in logged] == [[expected]]
    assert " prompt_tokens=1 cached_tokens=0 completion_tokens=2 time_to_first_token=" in logged[0]
