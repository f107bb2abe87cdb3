"""Every parser gets two hundred files that are nearly right; see `benchmarks/fuzz_parsers.py` for more of them."""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "benchmarks" / "fuzz_parsers.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_parsers", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_parsers"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


fuzz = load_tool()


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_good_file_is_read(name: str, tmp_path: Path) -> None:
    for data in fuzz.TARGETS[name].seeds:
        fuzz.TARGETS[name].read(data, tmp_path)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_bad_file_is_read_or_refused(name: str) -> None:
    problems = fuzz.rounds(fuzz.TARGETS[name], 200, seed=1)
    assert not problems, "\n".join(f"{problem}: {data}" for problem, data in problems.items())


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    def break_down(data: bytes, folder: Path) -> None:
        raise IndexError("of a bug")

    target = fuzz.Target([b"abc"], break_down)
    assert fuzz.rounds(target, 3, seed=0).keys() == {"IndexError: of a bug"}


def test_mutations_are_repeatable() -> None:
    first, second = (
        [fuzz.mutated(b"abcdef" * 50, rng) for _ in range(30)] for rng in (random.Random(1), random.Random(1))
    )
    assert first == second
    assert len(set(first)) > 25
