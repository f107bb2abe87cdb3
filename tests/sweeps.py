"""Tests of large programs: few cases and examples by default, and many with `python3 dev.py test-sweep`.

Such a test takes as long as compiling its programs, or as interpreting a kernel.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import hypothesis
import pytest

PROFILE: Final = "sweep"
"""Hypothesis profile of a sweep; `dev.py` loads it."""


def examples[Test: Callable[..., Any]](number: int, *, sweep: int) -> Callable[[Test], Test]:
    """Returns a decorator of a property test.

    Args:
      number: Number of examples by default.
      sweep: Number of examples in a sweep, which runs the test again.
    """
    if hypothesis.settings.get_current_profile_name() != PROFILE:
        return hypothesis.settings(max_examples=number)
    return lambda test: pytest.mark.sweep(hypothesis.settings(max_examples=sweep)(test))


def swept(*cases: Any) -> list[Any]:
    """Returns cases of `pytest.mark.parametrize` that only sweeps run; a tuple has a value for each argument."""
    return _marked(pytest.mark.sweep, cases)


def full(*cases: Any) -> list[Any]:
    """Returns cases of `pytest.mark.parametrize` that `--all` runs too, and that reach no code of their own."""
    return _marked(pytest.mark.full, cases)


def _marked(mark: pytest.MarkDecorator, cases: Iterable[Any]) -> list[Any]:
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark) for case in cases]
