"""A server on a Unix socket, behind a proxy whose headers it trusts."""

import re
import signal
import socket
from pathlib import Path

import httpx
import pytest
from server_process import SIMULATED, run_here, serving, start, until, wait_for_line


def test_a_server_listens_on_a_unix_socket(tiny_config: Path, tmp_path: Path) -> None:
    path, log = tmp_path / "roost.sock", tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(str(path))
    with log.open("w") as stderr:
        process = start("serve", f"random:{tiny_config}", *SIMULATED, "--uds", str(path), stderr=stderr)
    try:
        until(lambda: "is ready on" in log.read_text())
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


def test_a_page_belongs_to_the_host_that_a_trusted_proxy_forwards(tiny_config: Path) -> None:
    """A browser on a network without TLS sends no `Sec-Fetch-Site`; a proxy in the same pod changes `Host`."""
    names = ("--allow-host", "inner.example", "--forwarded-allow-ips", "127.0.0.1")
    headers = {"host": "inner.example:8000", "origin": "https://chat.example.org"}
    outcomes = {}
    for options in (names, names[:2]):
        with serving(f"random:{tiny_config}", *SIMULATED, *options) as server:
            for forwarded in ("chat.example.org", "other.example.org"):
                sent = {**headers, "x-forwarded-host": forwarded}
                answer = httpx.post(f"{server.url}/tokenize", json={"prompt": "a"}, headers=sent, timeout=60)
                outcomes[len(options), forwarded] = answer.status_code != 403
    assert [request for request, passes in outcomes.items() if passes] == [(4, "chat.example.org")]


@pytest.mark.parametrize(
    ("trusted", "expected"), [((), "127.0.0.1"), (("--forwarded-allow-ips", "127.0.0.1"), "203.0.113.9")]
)
def test_a_clients_address_is_a_proxys_word_only_if_it_is_trusted(
    tiny_config: Path, trusted: tuple[str, ...], expected: str
) -> None:
    with serving(f"random:{tiny_config}", *SIMULATED, *trusted) as server:
        headers = {"x-forwarded-for": "203.0.113.9", "x-request-id": "mine"}
        httpx.post(f"{server.url}/v1/completions", json={"prompt": [5], "max_tokens": 2}, headers=headers, timeout=60)
        wait_for_line(server, " mine POST /v1/completions 200 ")
        logged = [line for line in server.log.read_text().splitlines() if " mine " in line]
    assert [re.findall(r" client=(\S+) ", line) for line in logged] == [[expected]]
    assert " prompt_tokens=1 cached_tokens=0 completion_tokens=2 time_to_first_token=" in logged[0]
