"""The tables of the TPU programs count by the slower estimate, and mark rows with unknown parts."""

from typing import Any

import pytest
from roost.engine import DEVICES, compute_roofline, open_model
from tpu_programs import as_markdown, seconds

ROW: dict[str, Any] = {
    "model": "2b", "chip": "v5e", "slots": 512, "program": "decode", "rows": 512, "busy": 512, "tokens": 512,
    "window": "full", "sampling": "greedy", "kv_dtype": "bfloat16", "quantize": None, "floor_bytes": 10**9,
    "bytes_accessed": 2 * 10**9,
    "temp_bytes": 5 * 10**8, "hbm_bytes": 14 * 10**9, "optimal_seconds": 0.02, "scheduled_seconds": 0.0256,
    "custom_calls": 53, "fits": True, "without_end": 0, "without_bundles": 0,
}  # fmt: skip
PREFILL = ROW | {"program": "prefill", "rows": 1, "busy": 1, "optimal_seconds": 0.0128, "scheduled_seconds": 0.0127}


def test_the_slower_estimate_counts() -> None:
    assert (seconds(ROW), seconds(PREFILL)) == (0.0256, 0.0128)
    assert seconds(ROW | {"fits": False}) == float("inf")


def test_one_table_per_model_chip_and_pool() -> None:
    page = as_markdown([ROW, PREFILL, ROW | {"slots": 8, "fits": False}])
    assert "RecurrentGemma 2B on one v5e chip, bfloat16, 512 slots" in page
    assert (
        "| decode | 512 | 512 | greedy | full | 1.000 | 2.000 | 2.000 | 0.500 | 14.000 | yes | 20.00 ms | 25.60 ms |"
        in page
    )
    assert "| prefill 512 | 1 | 1 |" in page
    bound = compute_roofline(open_model("random:2b").config, DEVICES["v5e"], 2)
    assert f"| 20,000 | {bound.decode_tokens_per_second(512):,.0f} | 53 |" in page
    assert f"| {bound.prefill_tokens_per_second():,.0f} | 53 |" in page
    assert "8 slots" in page
    assert "| 14.000 | no |" in page


@pytest.mark.parametrize("missing", ["without_end", "without_bundles"])
def test_a_row_without_a_known_end_or_schedule_is_marked(missing: str) -> None:
    page = as_markdown([ROW | {missing: 2}])
    assert "| 20.00 ms | > 25.60 ms | < 20,000 |" in page
