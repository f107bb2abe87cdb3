"""Keys and certificates that are replaced under a running server, and its signals."""

import json
import os
import pty
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import make_certificate
from server_process import ServerProcess, metric, serving, until

BODY = {"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": True}
LONG = {"prompt": [5, 6, 7], "max_tokens": 400, "ignore_eos": True, "stream": True}

OLD = "alice:old\n"
SIMULATED = ("--simulate", "v5e,step_ms=20")


def status(server: ServerProcess, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/completions", json=BODY, headers=headers, timeout=60).status_code


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reloads") / "keys"
    path.write_text(OLD)
    return path


@pytest.fixture(scope="module")
def server_with_keys(tiny_config: Path, keys: Path) -> Iterator[ServerProcess]:
    with serving(f"random:{tiny_config}", *SIMULATED, "--api-key-file", str(keys), ROOST_ADMIN_KEY="root") as server:
        yield server


@pytest.fixture
def keyed(server_with_keys: ServerProcess, keys: Path) -> ServerProcess:
    """A server that knows the old key only."""
    replace(keys, OLD)
    server_with_keys.process.send_signal(signal.SIGHUP)
    until(lambda: [status(server_with_keys, key) for key in ("old", "new")] == [200, 401])
    return server_with_keys


def replace(path: Path, content: str | bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.rename(path)


def test_admin_actions_reloads_and_rejected_keys_are_in_the_audit_log(keyed: ServerProcess, keys: Path) -> None:
    def audited(event: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in keyed.log.read_text().splitlines() if '"logger": "roost.audit"' in line]
        return [line for line in lines if line["event"] == event]

    num_reloads = len(audited("reload"))
    replace(keys, f"# the same\n{OLD}")
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: len(audited("reload")) > num_reloads)
    assert audited("reload")[-1].items() >= {"files": f"api_key_file {keys}", "is_successful": True}.items()
    headers = {"authorization": "Bearer root"}
    assert httpx.get(f"{keyed.url}/v1/usage", headers=headers, timeout=60).status_code == 404  # without a database
    (admin,) = audited("admin")
    assert admin.items() >= {"client": "127.0.0.1", "method": "GET", "path": "/v1/usage"}.items()
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), base_url=keyed.url) as stranger:
        for _ in range(30):
            assert stranger.get("/v1/usage", headers={"x-api-key": "guessed"}, timeout=60).status_code == 401
    rejected = [line for line in audited("rejected_key") if line["client"] == "127.0.0.2"]
    assert len(rejected) in range(10, 21)  # a minute may end meanwhile
    assert {(line["path"], str(line["key_hashes"])) for line in rejected} == {
        ("/v1/usage", str(rejected[0]["key_hashes"]))
    }
    assert "guessed" not in keyed.log.read_text()


def test_a_removed_key_is_refused_and_its_stream_goes_on(keyed: ServerProcess, keys: Path) -> None:
    headers = {"authorization": "Bearer old"}
    with httpx.stream("POST", f"{keyed.url}/v1/completions", json=LONG, headers=headers, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line)
        next(lines)
        replace(keys, "alice:new\nbob:b\n")
        keyed.process.send_signal(signal.SIGHUP)
        until(lambda: status(keyed, "old") == 401)
        assert [status(keyed, key) for key in ("new", "b")] == [200, 200]
        *_, last = lines
    assert last == "data: [DONE]"
    assert "shares of several API keys hold from the next start" in keyed.log.read_text()


def test_a_changed_file_is_loaded_without_a_signal(keyed: ServerProcess, keys: Path) -> None:
    assert status(keyed, "old") == 200
    replace(keys, "alice:new\n")
    until(lambda: status(keyed, "old") == 401)
    assert status(keyed, "new") == 200


def test_a_file_that_became_wrong_keeps_the_old_keys(keyed: ServerProcess, keys: Path) -> None:
    replace(keys, "# nobody\n")
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: metric(keyed, "roost_config_last_reload_successful") == 0)
    assert status(keyed, "old") == 200
    errors = [line for line in keyed.log.read_text().splitlines() if " ERROR " in line]
    assert '"is_successful": false' in keyed.log.read_text()
    assert errors  # two if the server looked at the file before it got the signal
    assert all(line.endswith(f"api_key_file {keys}: has no key; add a line KEY or NAME:KEY") for line in errors)
    replace(keys, "alice:new\n")
    keyed.process.send_signal(signal.SIGHUP)
    until(lambda: metric(keyed, "roost_config_last_reload_successful") == 1)
    assert [status(keyed, key) for key in ("old", "new")] == [401, 200]


def test_a_new_certificate_is_used_for_new_connections(tiny_config: Path, tmp_path: Path) -> None:
    chain, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    pairs = [make_certificate() for _ in range(2)]
    for path, content in zip((chain, key), pairs[0], strict=True):
        path.write_bytes(content)
    trusts = [ssl.create_default_context(cadata=certificate.decode()) for certificate, _ in pairs]
    files = ("--ssl-certfile", str(chain), "--ssl-keyfile", str(key))
    with (
        serving(f"random:{tiny_config}", *SIMULATED, *files) as server,
        httpx.Client(base_url=server.url, verify=trusts[0], timeout=60) as old,
    ):

        def is_trusted(index: int) -> bool:
            try:
                return httpx.get(f"{server.url}/health", verify=trusts[index], timeout=60).status_code == 200
            except httpx.ConnectError:
                return False

        with old.stream("POST", "/v1/completions", json=LONG) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            replace(chain, pairs[1][0])  # without its key
            server.process.send_signal(signal.SIGHUP)
            until(lambda: "reload failed" in server.log.read_text())
            assert is_trusted(0)
            replace(key, pairs[1][1])
            server.process.send_signal(signal.SIGHUP)
            until(lambda: is_trusted(1))
            assert not is_trusted(0)
            *_, last = lines
        assert last == "data: [DONE]"


def test_a_signal_without_files_ends_nothing(tiny_config: Path) -> None:
    with serving(f"random:{tiny_config}", *SIMULATED) as server:
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "nothing was reloaded" in server.log.read_text())
        assert httpx.get(f"{server.url}/health/ready", timeout=60).status_code == 200


TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, sys.argv[1:])
"""
"""Program that makes its input the process's terminal, whatever nohup has begun, before it runs another one."""


def test_a_closed_terminal_ends_the_server(tiny_config: Path) -> None:
    """It drains, though nobody can read what it prints."""
    terminal, side = pty.openpty()
    command = [sys.executable, "-c", TERMINAL, sys.executable, "-m", "roost.server", "serve", f"random:{tiny_config}"]
    command += [*SIMULATED, "--port", "0"]
    process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True)
    try:
        os.close(side)
        written = b""
        while b"stop        Ctrl-C" not in written:
            written += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(60) == 0, written
    finally:
        process.kill()
