"""Usage that real servers store: what a kill may lose, and two replicas that add to one row."""

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from roost.server.features.usage.open_usage import INTERVAL_S
from server_process import SIMULATED, ServerProcess, launched, until

MAX_LOST_S = 10.0
"""Seconds that docs/how-to/tenants.md states."""

ROOT, ALICE = {"authorization": "Bearer root"}, {"authorization": "Bearer a"}


def complete(server: ServerProcess) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
    assert httpx.post(f"{server.url}/v1/completions", json=body, headers=ALICE, timeout=60).status_code == 200


def usage(server: ServerProcess) -> dict[str, Any]:
    rows = httpx.get(f"{server.url}/v1/usage", headers=ROOT, timeout=60).raise_for_status().json()["data"]
    names = ("requests", "prompt_tokens", "completion_tokens")
    return {name: sum(row[name] for row in rows if row["tenant"] == "alice") for name in names}


def test_ended_requests_outlive_a_kill_and_a_stop(tiny_config: Path, tmp_path: Path) -> None:
    options = (*SIMULATED, "--store", f"sqlite://{tmp_path / 'store.db'}")
    environment: dict[str, Any] = {"ROOST_API_KEY": "alice:a", "ROOST_ADMIN_KEY": "root"}
    with ExitStack() as stack:
        killed, stopped = (
            stack.enter_context(launched(f"random:{tiny_config}", *options, **environment)) for _ in range(2)
        )
        for server in (killed, stopped):
            complete(server)
        assert 2 * INTERVAL_S <= MAX_LOST_S  # the server's own clock: a busy machine may take longer
        until(lambda: usage(stopped)["requests"] == 2)
        killed.process.send_signal(signal.SIGKILL)
        complete(stopped)
        stopped.process.send_signal(signal.SIGTERM)
        assert stopped.ends() == 0
        reader = stack.enter_context(launched(f"random:{tiny_config}", *options, **environment))
        assert usage(reader) == {"requests": 3, "prompt_tokens": 9, "completion_tokens": 12}
