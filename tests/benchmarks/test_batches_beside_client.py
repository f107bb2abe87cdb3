"""The benchmark of batches compares ways within a round, and names the goals that were missed."""

import argparse

import orjson
import pytest
from batches import Figures, Workload, page

WORKLOAD = Workload(["demo"], 60, 300, group=20)


def test_runs_have_the_same_lines_but_for_the_salt() -> None:
    first, second = (list(map(orjson.loads, WORKLOAD.lines(salt))) for salt in ("a", "b"))
    assert {line["body"].pop("cache_salt") for line in first} == {"a"}
    assert {line["body"].pop("cache_salt") for line in second} == {"b"}
    assert first == second
    prefixes = [tuple(line["body"]["prompt"][: WORKLOAD.shared]) for line in first]
    assert len(set(prefixes)) == 3
    assert prefixes != sorted(prefixes)  # lines of a group are not neighbours


def test_ratios_are_medians_of_those_within_a_round() -> None:
    seconds = {"client": [10.0, 20.0, 10.0], "batch": [10.0, 10.0, 11.0], "command": [20.0, 30.0, 10.0]}
    figures = Figures(WORKLOAD, 1000, seconds, [(0.01, 0.013), (0.02, 0.021), (0.01, 0.0125)])
    assert figures.ratio("batch") == 1.0
    assert figures.speed("batch") == 100.0
    assert figures.gap_ratio == pytest.approx(1.25)
    assert figures.missed() == [
        "command: 0.667 of the client's tokens per second",
        "p99 between tokens: 1.25 times that without a batch",
    ]
    text = page({"demo": figures}, argparse.Namespace(rounds=3, seconds=10.0))
    assert "| demo | command | 50 | 0.67 |" in text
    assert "| demo | 10.0 | 13.0 | 1.25 |" in text
