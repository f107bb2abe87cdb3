"""Row of the table of sampling fields. The table is `SamplingParams`: every number in it is declared as a row.

A row holds everything about its field that isn't arithmetic: bounds, defaults and the device array. Request schemas,
validation, checkpoint defaults and device arrays are derived from it.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

type Number = int | float

_COMPARISONS: Final[Mapping[str, tuple[Callable[[Number, Number], bool], str]]] = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}

_KEY: Final = "sampling"
"""Key of a row in the metadata of its dataclass field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Interval of numbers. A bound that is None does not limit. NaN is in no interval that has a bound."""

    ge: Number | None = None
    gt: Number | None = None
    le: Number | None = None
    lt: Number | None = None

    @property
    def bounds(self) -> dict[str, Any]:
        """Bounds by name: the keyword arguments of pydantic's `Field`."""
        named = {name: getattr(self, name) for name in _COMPARISONS}
        return {name: bound for name, bound in named.items() if bound is not None}

    def __contains__(self, value: Number) -> bool:
        return all(_COMPARISONS[name][0](value, bound) for name, bound in self.bounds.items())

    def __str__(self) -> str:
        """Returns the rule in words, such as "above 0 and at most 1"."""
        return " and ".join(f"{_COMPARISONS[name][1]} {_digits(bound)}" for name, bound in self.bounds.items())


@dataclass(frozen=True, slots=True)
class Column:
    """Device array that holds one value, or a list of values, of every row.

    Attributes:
      dtype: Name of the numpy dtype.
      neutral: Value of rows whose request leaves the field alone, and of unused places of a list.
      width: Number of places of a list; None means that the array has shape `[R]` instead of `[R, width]`.
    """

    dtype: str
    neutral: Number
    width: int | None = None

    def shape(self, rows: int) -> tuple[int, ...]:
        return (rows,) if self.width is None else (rows, self.width)


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One row of the table.

    Attributes:
      default: Value when neither the request nor the checkpoint names one.
      valid: Values that the engine takes.
      request: Values that request bodies take; None means that bodies don't have the field as a plain number.
      checkpoint: Values that `generation_config.json` takes; None means that the file cannot set a default.
      column: Device array of the same name; None means that the field is not sent to the device as it is.
    """

    default: Number | None
    valid: Range
    request: Range | None = None
    checkpoint: Range | None = None
    column: Column | None = None

    @property
    def kind(self) -> type:
        """Type of the numbers, int or float."""
        return type(self.default)


def sampling_field(
    default: Number | None,
    valid: Range,
    *,
    request: Range | None = None,
    checkpoint: Range | None = None,
    column: Column | None = None,
) -> Any:
    """Declares a dataclass field as a row of the table; see `SamplingField` for the arguments."""
    row = SamplingField(default, valid, request, checkpoint, column)
    return field(default=default, metadata={_KEY: row})


def sampling_fields(params: type) -> dict[str, SamplingField]:
    """Returns the rows that a dataclass declares, by name."""
    return {each.name: each.metadata[_KEY] for each in fields(params) if _KEY in each.metadata}


def _digits(bound: Number) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
