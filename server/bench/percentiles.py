"""Many numbers in a few."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is told of many values, in their unit."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Distribution | None":
        """None where there is no value."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
        mean = math.fsum(ordered) / len(ordered)
        return cls(len(ordered), mean, ordered[0], p50, p90, p95, p99, ordered[-1])


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Between two values it lies on the line from one to the other, as numpy's default has it.

    Args:
      ordered: at least one value, in rising order.
      percent: from 0 to 100.
    """
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def in_ms(seconds: Iterable[float]) -> dict[str, Any] | None:
    """A distribution of times given in seconds, in milliseconds and as JSON has it."""
    found = Distribution.of(value * 1e3 for value in seconds)
    return None if found is None else asdict(found)


def median_of(results: Sequence[Any]) -> Any:
    """The median of each number in results of the same form; None among them is left out."""
    given = [result for result in results if result is not None]
    if not given:
        return None
    if isinstance(given[0], Mapping):
        return {name: median_of([result[name] for result in given]) for name in given[0]}
    return statistics.median(given)
