"""`examples/ray_data.py` with real Ray: two actors, one of which is killed, and a run that goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from server_process import API_KEY, ServerProcess

pytestmark = pytest.mark.compat

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"
NUM_ROWS = 1000


def start(rows: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    small = {"ROOST_SLOTS": "4", "ROOST_PREFILL_CHUNK": "128", "ROOST_API_KEY": API_KEY}
    quiet = {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_USAGE_STATS_ENABLED": "0", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-P", str(EXAMPLE), str(rows), str(out), "--max-tokens", "2", "--batch-size", "20"]
    return subprocess.Popen(
        [*command, *options],
        env={**os.environ, **small, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"id": f"row-{number}", "prompt": f"number {number}"}) for number in range(NUM_ROWS)]
    path.write_text("\n".join(lines))
    return path


def written_ids(out: Path) -> list[str]:
    lines: list[dict[str, Any]] = [
        json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    return [line["id"] for line in lines]


def actors() -> list[int]:
    """Returns the ids of the processes of Ray's actors that generate."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            title = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
        except OSError:
            continue
        if title.startswith(b"ray::") and b"WriteTexts" in title:
            found.append(int(folder.name))
    return found


@pytest.mark.timeout(600)
def test_a_killed_actor_loses_no_row(rows: Path, tmp_path: Path, tiny_config: Path) -> None:
    out = tmp_path / "out"
    process = start(rows, out, "--model", f"random:{tiny_config}", "--actors", "2")
    deadline = time.monotonic() + 240
    while not list(out.glob("*.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    killed = actors()[0]
    os.kill(killed, signal.SIGKILL)
    end(process)
    assert sorted(written_ids(out)) == sorted(f"row-{number}" for number in range(NUM_ROWS))


@pytest.mark.timeout(600)
def test_a_second_run_does_what_is_left_on_servers(rows: Path, tmp_path: Path, server: ServerProcess) -> None:
    out = tmp_path / "out"
    assert "0 rows are done, 1000 are left" in end(
        start(rows, out, "--url", server.url, "--actors", "2", "--batch-size", "8")
    )
    for path in sorted(out.glob("*.jsonl"))[:3]:
        path.unlink()
    done = len(written_ids(out))
    assert done < NUM_ROWS
    assert f"{done} rows are done, {NUM_ROWS - done} are left" in end(
        start(rows, out, "--url", server.url, "--batch-size", "8")
    )
    assert sorted(written_ids(out)) == sorted(f"row-{number}" for number in range(NUM_ROWS))
