"""The report of the TPU programs says what is reached, and by how much the rest is missed."""

from typing import Any

import pytest
from tpu_report import Goal, as_markdown, goals, seconds, verdict

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


@pytest.mark.parametrize(
    ("is_ceiling", "value", "expected"),
    [
        (False, 16.0, "reached, stretch too"),
        (False, 10.0, "reached; stretch missed by 50.0%"),
        (False, 5.0, "missed by 100%"),
        (True, 5.0, "reached, stretch too"),
        (True, 12.0, "missed by 20%"),
        (False, None, "not measured"),
    ],
)
def test_verdict(is_ceiling: bool, value: float | None, expected: str) -> None:
    goal = Goal("figure", lambda rows: None, 10, 10 if is_ceiling else 15, is_ceiling=is_ceiling)
    assert verdict(goal, value) == expected


def test_goals_find_their_rows() -> None:
    sampled = ROW | {"sampling": "sampled", "scheduled_seconds": 0.032}
    eights = [
        ROW | {"rows": 8, "busy": 8, "tokens": 8, "slots": slots, "scheduled_seconds": time}
        for slots, time in [(512, 0.03), (8, 0.0256)]
    ]
    values = {goal.name: goal.value([ROW, sampled, PREFILL, *eights]) for goal in goals()}
    assert values["slots, 2B on a v5e"] == 512
    assert values["slots, 9B int8 on a v5e"] is None
    assert values["2B decode on a v5e, all rows sampled with top-p, tokens/s"] == pytest.approx(16_000)
    assert values["2B decode on a v5e, all rows greedy, tokens/s"] == pytest.approx(20_000)
    assert values["2B decode on a v5e, temporaries of 512 rows, GB"] == 0.5
    assert values["8 busy of all slots, time over a pool of 8"] == pytest.approx(0.03 / 0.0256)
    assert values["2B prefill of 512 tokens on a v5e, tokens/s"] == pytest.approx(40_000)


def test_goals_in_int8_find_their_rows() -> None:
    """Rows in bfloat16, of fewer slots, or of another model are not theirs."""
    both = {"quantize": "int8", "kv_dtype": "int8"}
    all_rows = {"slots": 456, "rows": 456, "busy": 456, "tokens": 456, "scheduled_seconds": 0.0304}
    part = all_rows | {"slots": 224, "rows": 224, "busy": 224, "tokens": 224}
    measured = [ROW, PREFILL, ROW | both, *(ROW | both | {"model": "9b"} | own for own in (all_rows, part))]
    values = {goal.name: goal.value(measured) for goal in goals()}
    assert values["2B decode on a v5e, all rows greedy, tokens/s"] == pytest.approx(20_000)
    assert values["2B decode on a v5e, 512 rows greedy, both in int8, tokens/s"] == pytest.approx(20_000)
    assert values["2B decode on a v5e, 512 rows greedy, window in int8, tokens/s"] is None
    assert values["slots, 9B on a v5e, both in int8"] == 456
    assert values["9B decode on a v5e, all rows greedy, both in int8, tokens/s"] == pytest.approx(15_000)
    assert values["9B decode on a v5e, 224 rows greedy, both in int8, tokens/s"] == pytest.approx(224 / 0.0304)
    assert values["9B prefill of 512 tokens on a v5e, matrices in int8, tokens/s"] is None


def test_goals_between_find_their_rows() -> None:
    """Rows that are all busy count for the largest step, and those with idle rows for none."""
    some = ROW | {"slots": 608, "busy": 300, "tokens": 300, "scheduled_seconds": 0.022}
    on_v6e = ROW | {"chip": "v6e", "busy": 256, "tokens": 256, "optimal_seconds": 0.0, "scheduled_seconds": 0.008}
    request = ROW | {"program": "mixed", "rows": 608, "busy": 608, "tokens": 640, "window": "at 576"}
    values = {goal.name: goal.value([ROW, some, on_v6e, request]) for goal in goals()}
    assert values["2B decode on a v5e, 300 busy of all slots, ms"] == pytest.approx(22)
    assert values["2B decode on a v5e, 129 busy of all slots, ms"] is None
    assert values["2B decode on a v5e, all rows greedy, tokens/s"] == pytest.approx(20_000)
    assert values["2B decode on a v6e, 256 busy of all slots, tokens/s"] == pytest.approx(32_000)
    assert values["512 + 128 of 2B on a v5e, all slots busy, ms"] == pytest.approx(25.6)
    assert values["512 + 128 of 2B on a v5e, all slots busy, both in int8, ms"] is None


def test_a_goal_without_a_stretch_is_reached_or_missed() -> None:
    goal = Goal("figure", lambda rows: None, 11, is_ceiling=True)
    assert (verdict(goal, 11.0), verdict(goal, 22.0)) == ("reached", "missed by 100%")


def test_slots_count_only_if_all_their_programs_fit() -> None:
    refused = PREFILL | {"fits": False}
    assert goals()[0].value([ROW, refused]) is None


def test_one_table_per_model_chip_and_pool() -> None:
    page = as_markdown([ROW, PREFILL, ROW | {"slots": 8, "fits": False}])
    assert "RecurrentGemma 2B on one v5e chip, bfloat16, 512 slots" in page
    assert (
        "| decode | 512 | 512 | greedy | full | 1.000 | 2.000 | 2.000 | 0.500 | 14.000 | yes | 20.00 ms | 25.60 ms |"
        in page
    )
    assert "| prefill 512 | 1 | 1 |" in page
    assert "8 slots" in page
    assert "| 14.000 | no |" in page


@pytest.mark.parametrize("missing", ["without_end", "without_bundles"])
def test_a_row_without_a_known_end_or_schedule_is_marked(missing: str) -> None:
    page = as_markdown([ROW | {missing: 2}])
    assert "| 20.00 ms | > 25.60 ms | < 20,000 |" in page
