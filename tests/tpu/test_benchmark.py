"""The benchmark of the TPU programs runs and counts correctly, and its results for 2B and 9B are as documented."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from roost.engine.model.config import PRESETS
from roost.engine.roofline import DEVICES, compute_roofline

pytestmark = pytest.mark.tpu_compile

ROOT = Path(__file__).parents[2]


def measured(*options: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks" / "tpu_programs.py"), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_line_per_program() -> None:
    config = ROOT / "tests" / "golden" / "tiny-a" / "hf" / "config.json"
    full, quarter, prefill = measured("--model", str(config), "--rows", "8")
    assert [p["program"] for p in (full, quarter, prefill)] == ["decode", "decode", "prefill"]
    assert (full["rows"], full["window"], quarter["window"]) == (8, "full", "quarter")
    rings = 8 * 2 * 2 * 16 * 16 * 2  # slots, layers, keys and values, window, head size, bytes
    assert full["floor_bytes"] - quarter["floor_bytes"] == 3 * rings // 4
    assert full["bytes_accessed"] - quarter["bytes_accessed"] == 3 * rings // 4
    assert full["custom_calls"] == 2 + 6, "attention and MLPs; the gate blocks are too narrow for their kernel"
    assert prefill["hbm_bytes"] > prefill["temp_bytes"] > 0


@pytest.mark.parametrize(("model", "chip", "slots", "layers"), [("2b", "v5e", 512, 26), ("9b", "v6e", 384, 38)])
def test_whole_models_fit_a_chip(model: str, chip: str, slots: int, layers: int) -> None:
    """Programs hold every layer's kernels, copy no pool, and move little more than their floor.

    The floor counts weights and state once, so an uncounted kernel would push the count below it.
    """
    full, quarter, prefill = measured("--model", model, "--chip", chip, "--rows", str(slots))
    assert full["custom_calls"] == quarter["custom_calls"] == 2 * layers, "a temporal block and an MLP each"
    assert prefill["custom_calls"] == layers, "temporal blocks; this many tokens leave the MLP to the compiler"
    assert full["hbm_bytes"] < full["floor_bytes"] + 0.1e9, "the pool is there once"
    assert max(full["hbm_bytes"], prefill["hbm_bytes"]) < DEVICES[chip].memory_bytes
    assert full["temp_bytes"] < 0.1e9
    widest = 2048 * 2 * PRESETS[model].mlp_width * 2  # tokens, gate and value, bytes
    assert prefill["temp_bytes"] < 4 * widest, "some activations of one layer, and no copy of weights or slots"
    for decode in (full, quarter):
        assert decode["floor_bytes"] < decode["bytes_accessed"] < 1.25 * decode["floor_bytes"]
    assert full["bytes_accessed"] < 1.15 * full["floor_bytes"]
    assert prefill["floor_bytes"] < prefill["bytes_accessed"]
    assert all(program["optimal_seconds"] > 0 for program in (full, quarter, prefill))


def test_9b_in_int8_fits_one_small_chip() -> None:
    """More than 200 requests fit, as `roost plan` says."""
    slots = 224
    assert slots <= compute_roofline(PRESETS["9b"], DEVICES["v5e"], 2, is_quantized=True).slots
    options = ("--model", "9b", "--chip", "v5e", "--quantize", "int8", "--rows", str(slots))
    full, _, prefill = measured(*options)
    assert full["rows"] == slots
    assert max(full["hbm_bytes"], prefill["hbm_bytes"]) < DEVICES["v5e"].memory_bytes
    assert full["hbm_bytes"] < full["floor_bytes"] + 0.2e9, "the pool is there once"
