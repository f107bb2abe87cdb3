"""Agents that are set up by the blocks of docs/how-to/clients.md, as a reader pastes them."""

import os
import re
import subprocess
from pathlib import Path

from server_process import API_KEY, ServerProcess

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clients.md"
ADDRESS, KEY = "http://127.0.0.1:8000", "none"
QUIET = {
    "AIDER_ANALYTICS": "false",
    "AIDER_CHECK_UPDATE": "false",
    "AIDER_GIT": "false",
    "AIDER_SHOW_MODEL_WARNINGS": "false",
    "AIDER_SHOW_RELEASE_NOTES": "false",
    "CONTINUE_METRICS_ENABLED": "0",
    "HTTPS_PROXY": "http://127.0.0.1:9",  # where nobody listens, so that what would leave this machine fails at once
    "NO_PROXY": "127.0.0.1",
}
"""Environment variables that turn off what agents send to their makers, and what they ask a reader first."""


def pasted(client: str, server: ServerProcess) -> str:
    """Returns the block that follows a client's name on the page, with the address and the key of a server."""
    found = re.search(rf"^\*\*{client}\*\*.*?^```\w+\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert found, f"{PAGE} has no block for {client}"
    assert ADDRESS in found[1]
    return re.sub(rf"\b{KEY}\b", API_KEY, found[1].replace(ADDRESS, server.url)).strip()


def environment_of(home: Path, programs: Path) -> dict[str, str]:
    """Returns the environment of a user with nothing else in the home folder and the environment.

    Args:
      programs: Folder of the agent's command.
    """
    return {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", **QUIET}


def run_agent(script: str, home: Path, programs: Path) -> str:
    """Runs a shell script in the environment of such a user, and returns its stdout."""
    run = subprocess.run(
        ["bash", "-e", "-c", script],
        cwd=home,
        env=environment_of(home, programs),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout
