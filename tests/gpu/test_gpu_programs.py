"""Served programs compiled for a card: their launches, by the benchmark, and their memory, by `roost plan --verify`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_dump import LOAD_CYCLES
from roost.engine.capacity.chips import verify_plan
from roost.engine.checkpoint.source import open_model
from roost.engine.types.config import EngineConfig, MeshShape
from roost.engine.types.errors import ConfigError

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "golden" / "tiny-a" / "hf" / "config.json"

VOCABULARY = 6000
"""Tokens: more than the candidates' blocks hold, so that they are not sorted as a whole."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the config of a small model with gate blocks and a vocabulary large enough for the kernels."""
    path = tmp_path_factory.mktemp("small") / "config.json"
    fields = {"vocab_size": VOCABULARY, "hidden_size": 256, "lru_width": 256, "num_attention_heads": 2, "head_dim": 128}
    path.write_text(json.dumps(json.loads(TINY.read_text()) | fields))
    return path


def test_launches_of_a_small_model(config: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "programs" / "gpu_programs.py"), "--model", str(config)]
    options = ["--card", "l4", "--slots", "32", "--prefill-chunk", "128", "--programs", "decode-8", "prefill-1x128"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=1700)
    decode, prefill = (json.loads(line) for line in done.stdout.splitlines())
    assert (decode["rows"], prefill["tokens"]) == (8, 128)
    for row in (decode, prefill):
        assert row["fits"]
        assert 20 < row["launches"] < 150
        assert row["launches_in_graphs"] == row["launches"]
        assert (row["while_loops"], row["copies_of_pool"], row["full_sorts"]) == (0, 0, 0)
        assert all(kernel["registers"] > 0 and kernel["spilled_bytes"] == 0 for kernel in row["kernels"])
        assert all(kernel["blocks_per_multiprocessor"] > 0 for kernel in row["kernels"])
        assert sum(part["launches"] for part in row["parts"]) == row["launches"], "each launch is estimated"
        assert {"products", "others", *(kernel["name"] for kernel in row["kernels"])} == {
            p["name"] for p in row["parts"]
        }
        bound = max(row["memory_seconds"], row["tensor_seconds"], row["launch_seconds"])
        assert sum(part["seconds"] for part in row["parts"]) > bound
    assert [kernel["name"] for kernel in decode["kernels"]] == ["recurrent_step", "window_attention_decode"]
    passes = (128 // 64) * (128 // 32)  # of the loops over a gate block's 128 inputs, for its 128 channels
    assert decode["kernels"][0]["cycles"] > passes * LOAD_CYCLES
    assert [kernel["name"] for kernel in prefill["kernels"]] == ["rg_lru", "window_attention_prefill"]


def test_int8_matrices_are_multiplied_in_int8(config: Path) -> None:
    """All products of layers, and those of the logits with and without a sampler."""
    command = [sys.executable, str(ROOT / "tools" / "programs" / "gpu_programs.py"), "--model", str(config)]
    options = ["--card", "h100", "--slots", "32", "--quantize", "int8", "--programs", "decode-8"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=1700)
    layers = len(open_model(f"random:{config}").config.block_types)
    assert json.loads(done.stdout)["int8_products"] == 4 * layers + 2


def test_a_plan_is_verified_for_a_card(config: Path) -> None:
    """With the small model's slots given; every program fits, and those with layers have their kernels."""
    reported: list[tuple[int, int, int]] = []
    settings = EngineConfig(slots=16, prefill_chunk=64)
    found = verify_plan(open_model(f"random:{config}"), settings, "l4", lambda *done: reported.append(done))
    assert found.fits
    assert found.slots == 16
    assert 20 * 2**30 < found.hbm_limit_bytes < 24e9
    kernels: dict[str, Any] = {program.name: program.custom_calls for program in found.programs}
    layers = len(open_model(f"random:{config}").config.block_types)
    assert kernels["decode 8"] == kernels["decode 16"] == layers
    assert kernels["prefill 1x64"] == layers
    assert reported[-1] == (16, len(found.programs), len(found.programs))


def test_several_cards_are_refused() -> None:
    with pytest.raises(ConfigError, match="one card only"):
        verify_plan(open_model(f"random:{TINY}"), EngineConfig(shards=MeshShape(1, 2)), "l4", lambda *_: None)
