"""The table of sampling fields and what is derived from it."""

from dataclasses import fields

import numpy as np
import pytest
from roost.engine.sampling.sampler import zero_sampling_state
from roost.engine.types.sampling_params import NUMBER_COLUMNS, SAMPLING_COLUMNS, SAMPLING_FIELDS, Range, SamplingParams


@pytest.mark.parametrize(
    ("valid", "inside", "outside"),
    [
        (Range(ge=0, le=1), [0, 0.5, 1], [-1e-9, 1.1, float("nan")]),
        (Range(gt=0, lt=2**64), [5e-324, 2**64 - 1], [0, 2**64, float("inf")]),
        (Range(), [-1, float("inf"), float("nan")], []),
    ],
)
def test_range_includes_its_closed_bounds_only(valid: Range, inside: list[float], outside: list[float]) -> None:
    assert all(value in valid for value in inside)
    assert not any(value in valid for value in outside)


def test_range_reads_as_the_end_of_a_sentence() -> None:
    assert str(Range(gt=0, le=1)) == "above 0 and at most 1"
    assert str(Range(ge=-1e30, lt=2**64)) == "at least -1e+30 and below 18446744073709551616"


def test_every_number_of_the_parameters_is_a_row() -> None:
    numbers = {each.name for each in fields(SamplingParams) if each.type in (int, float, int | None, float | None)}
    assert numbers == SAMPLING_FIELDS.keys()


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
def test_bounds_of_requests_and_checkpoints_hold_the_default(name: str) -> None:
    row = SAMPLING_FIELDS[name]
    assert row.default is None or all(row.default in each for each in (row.valid, row.request, row.checkpoint) if each)


def test_rows_without_a_request_decode_greedily_without_truncation() -> None:
    state = zero_sampling_state(3)
    neutral = {name: column.neutral for name, column in NUMBER_COLUMNS.items()}
    assert neutral == {name: SAMPLING_FIELDS[name].default for name in NUMBER_COLUMNS} | {"temperature": 0.0}
    for name, column in SAMPLING_COLUMNS.items():
        array = np.asarray(getattr(state, name))
        assert (array.shape, array.dtype.name) == ((3, *column.shape), column.dtype)
        assert (array == column.neutral).all()
