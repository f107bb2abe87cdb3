"""What `roost report` runs on a TPU compiles for one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.tpu_compile

TINY = Path(__file__).parents[1] / "golden" / "tiny-a" / "hf" / "config.json"


def test_everything_that_a_report_runs_compiles(tmp_path: Path) -> None:
    """For a small model with gate blocks that the kernels take: every kernel alone, and the served programs."""
    fields = {"vocab_size": 1024, "hidden_size": 256, "lru_width": 256, "num_attention_heads": 2, "head_dim": 128}
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads(TINY.read_text()) | fields | {"torch_dtype": "bfloat16"})
    )
    model = f"random:{tmp_path / 'config.json'}"
    command = [sys.executable, "-m", "roost.server", "report", model, "--compile-only", "v5e", "--slots", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1700)
    assert (done.returncode, done.stdout) == (0, "all that a report runs compiles for v5e\n"), done.stderr
    for kernel in (
        "window_attention_decode",
        "recurrent_step",
        "recurrent_chunk",
        "gated_mlp",
        "int8_product",
        "sample",
        "argmax",
    ):
        assert f"{kernel}, " in done.stderr
