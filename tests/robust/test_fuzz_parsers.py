"""Every parser gets two hundred files that are nearly right; see `tests/robust/fuzz_parsers.py` for more of them."""

import random
from pathlib import Path

import fuzz_parsers
import pytest


@pytest.mark.parametrize("name", fuzz_parsers.TARGETS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    for data in fuzz_parsers.TARGETS[name].seeds:
        fuzz_parsers.TARGETS[name].read(data, tmp_path)


@pytest.mark.parametrize("name", fuzz_parsers.TARGETS)
def test_a_bad_file_is_read_or_refused(name: str) -> None:
    problems = fuzz_parsers.rounds(fuzz_parsers.TARGETS[name], 200, seed=1)
    assert not problems, "\n".join(f"{problem}: {data}" for problem, data in problems.items())


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    def break_down(data: bytes, folder: Path) -> None:
        raise IndexError("of a bug")

    target = fuzz_parsers.Target([b"abc"], break_down)
    assert fuzz_parsers.rounds(target, 3, seed=0).keys() == {"IndexError: of a bug"}


def test_mutations_are_repeatable() -> None:
    first, second = (
        [fuzz_parsers.mutated(b"abcdef" * 50, rng) for _ in range(30)] for rng in (random.Random(1), random.Random(1))
    )
    assert first == second
    assert len(set(first)) > 25
