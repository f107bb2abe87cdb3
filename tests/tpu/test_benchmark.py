"""The benchmark of the TPU programs runs, and counts what it says it counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tpu_compile

ROOT = Path(__file__).parents[2]


def test_one_line_per_program() -> None:
    config = ROOT / "tests" / "golden" / "tiny-a" / "hf" / "config.json"
    command = [sys.executable, ROOT / "benchmarks" / "tpu_programs.py", "--model", config, "--rows", "8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    full, quarter, prefill = (json.loads(line) for line in done.stdout.splitlines())
    assert [p["program"] for p in (full, quarter, prefill)] == ["decode", "decode", "prefill"]
    assert (full["rows"], full["window"], quarter["window"]) == (8, "full", "quarter")
    rings = 8 * 2 * 2 * 16 * 16 * 2  # slots, layers, keys and values, window, head size, bytes
    assert full["floor_bytes"] - quarter["floor_bytes"] == 3 * rings // 4
    assert full["bytes_accessed"] - quarter["bytes_accessed"] == 3 * rings // 4
    assert full["custom_calls"] == 2 + 6, "attention and MLPs; the gate blocks are too narrow for their kernel"
    assert prefill["hbm_bytes"] > prefill["temp_bytes"] > 0
