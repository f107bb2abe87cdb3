"""The benchmark of the TPU programs measures served programs, and counts correctly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.tpu_compile

ROOT = Path(__file__).parents[2]


def measured(*options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "tools" / "programs" / "tpu_programs.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1700)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_of_a_tiny_model() -> None:
    config = ROOT / "tests" / "golden" / "tiny-a" / "hf" / "config.json"
    options = ("--slots", "32", "--rows", "32", "--busy", "20")
    rows = measured("--model", str(config), *options)
    programs = [*["decode"] * 4, *["prefill"] * 5, "score", "first token", "decode", "mixed"]
    assert [row["program"] for row in rows] == programs
    assert [(row["rows"], row["tokens"]) for row in rows[4:9]] == [(1, 128), (2, 256), (1, 256), (8, 512), (1, 512)]
    greedy, sampled, quarter, some, *_, prefill, _, first, step, request = rows
    assert [row["sampling"] for row in rows[:4]] == ["greedy", "sampled", "greedy", "greedy"]
    assert (greedy["rows"], greedy["window"], quarter["window"]) == (32, "full", "quarter")
    assert (greedy["kv_dtype"], greedy["quantize"], prefill["tokens"]) == ("bfloat16", None, 512)
    rings = 32 * 2 * 2 * 16 * 16 * 2  # slots, layers, keys and values, window, head size, bytes
    assert greedy["floor_bytes"] - quarter["floor_bytes"] == 3 * rings // 4
    assert (some["rows"], some["busy"], some["tokens"]) == (32, 20, 20)
    assert some["scheduled_seconds"] < greedy["scheduled_seconds"], "attention skips idle rows"
    assert some["floor_bytes"] < greedy["floor_bytes"], "rings of idle rows are not read"
    assert some["temp_bytes"] == greedy["temp_bytes"], "one program"
    parts = [part["optimal_seconds"] for part in (prefill, first)]
    assert request["optimal_seconds"] == pytest.approx(sum(parts) + 128 / 32 * step["optimal_seconds"])
    assert sampled["scheduled_seconds"] > greedy["scheduled_seconds"] > 0
    assert sampled["temp_bytes"] == greedy["temp_bytes"], "one program"
    assert all(row["fits"] for row in rows)
    assert all(row["without_bundles"] == 0 for row in rows), "every call of a kernel counts by a schedule"
    assert all(0 < row["optimal_seconds"] < 1e-3 for row in rows)


def test_8_rows_of_many_move_weights_and_their_own_states() -> None:
    """The floor counts weights and state once, so an uncounted kernel would push the count below it.

    XLA does not count weights that it reads ahead into on-chip memory, which are 0.9 % of this step's bytes.
    """
    options = ("--slots", "384", "--rows", "8", "--programs", "decode", "prefill")
    greedy, _, *_, prefill, score = rows = measured("--model", "2b", "--chip", "v5e", *options)
    assert all(row["fits"] for row in rows)
    assert 0.985 * greedy["floor_bytes"] < greedy["bytes_accessed"] < 1.1 * greedy["floor_bytes"]
    assert greedy["custom_calls"] == 2 * 26 + 2, "a temporal block and an MLP each, the argmax and the sampler"
    assert prefill["custom_calls"] == 2 * 26
    assert greedy["without_bundles"] == prefill["without_bundles"] == 0
    assert prefill["floor_bytes"] < prefill["bytes_accessed"]
    assert 512 / 200e3 < max(score["optimal_seconds"], score["scheduled_seconds"]) < 0.01
    for row in rows[:-1]:
        assert row["tokens"] / 60e3 < max(row["optimal_seconds"], row["scheduled_seconds"]) < 0.02
