"""Bounds of a JSON schema in a form that llguidance compiles exactly, or the nearest wider form.

llguidance reads bounds of numbers as doubles, and builds their ranges from 64-bit integers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

_MAX_INT64: Final = 2**63 - 1
"""Upper bound of integers that llguidance enforces although no double has its value."""

_FARTHEST_INTEGER: Final = 2**63 - 1024
"""Largest double below 2**63, and the farthest bound of integers."""

_FARTHEST_NUMBER: Final = 10**18
"""Farthest bound of numbers that llguidance enforces exactly."""

_NEAREST_OPEN_INTEGER: Final = 10**18 - 128
"""Largest lower bound of integers without an upper bound: one of more digits fails."""

_NEAREST_OPEN_NUMBER: Final = 10**17
"""Largest power of ten that is a lower bound of numbers without an upper bound."""

_MAX_WHOLE: Final = 2**53
"""Largest bound of numbers whose doubles have all their digits. Beyond, powers of ten are exact."""

_MIN_PART: Final = Fraction(1, 10**60)
"""Smallest positive lower bound of numbers: each zero after the point nests a group, and groups are limited."""

_MAX_LENGTH: Final = 2**32 - 1
"""Maximum length of strings that llguidance compiles."""

_MAX_COUNT: Final = 2**63 - 1
"""Maximum number of items or properties that llguidance compiles."""

_MAX_MULTIPLE: Final = 10**5
"""Largest `multipleOf`, as a whole number, for which llguidance soon finds multiples."""

_MAX_POWER: Final = 10**9
"""Largest power of ten for which llguidance finds multiples at once."""

_MAXIMA: Final = {
    **dict.fromkeys(("minLength", "maxLength"), _MAX_LENGTH),
    **dict.fromkeys(("minItems", "maxItems", "minProperties", "maxProperties"), _MAX_COUNT),
}

_RANGES: Final = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")

_KEYWORDS: Final = frozenset({*_MAXIMA, *_RANGES, "multipleOf"})

_FACTORS: Final = (2, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Bounded:
    """A schema whose bounds llguidance compiles.

    Attributes:
      node: The schema.
      widened: Keywords that are enforced in a wider form, or not at all.
    """

    node: Mapping[str, Any]
    widened: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Lower:
    """A lower bound; an upper bound is the lower bound of the negated values."""

    value: Fraction | float
    is_exclusive: bool

    def negated(self) -> "_Lower":
        return replace(self, value=-self.value)


def bounded(node: Mapping[str, Any]) -> Bounded:
    """Returns a schema whose bounds, if they cannot be compiled, are widened to the nearest that can.

    Integers may be written with a fraction of zero, such as `10.0`. Malformed bounds are left to llguidance.
    """
    if not _KEYWORDS & node.keys():
        return Bounded(node)
    node = _without_flags(node)
    counts = {key: node[key] for key in _MAXIMA if _is_number(node.get(key))}
    changes: dict[str, Any] = {key: _count(key, count) for key, count in counts.items()}
    if _is_number(node.get("multipleOf")):
        changes["multipleOf"] = _multiple(node["multipleOf"])
    widened = [key for key, value in changes.items() if value != node[key]]
    ranges, widened_ranges = _ranges(node)
    changed = {**node, **changes, **ranges}
    gone = {key for key, value in {**changes, **ranges}.items() if value is None}
    return Bounded({key: value for key, value in changed.items() if key not in gone}, (*widened, *widened_ranges))


def _without_flags(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a schema in which draft 4's flags of exclusive bounds became such bounds."""
    for name in ("minimum", "maximum"):
        flag = f"exclusive{name.capitalize()}"
        if isinstance(node.get(flag), bool):
            key = flag if node[flag] else name
            renamed = {key: node[name]} if name in node else {}
            node = {other: value for other, value in node.items() if other not in (flag, name)} | renamed
    return node


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _count(key: str, value: float) -> float | None:
    """Returns a length or count as an integer; None for a maximum that is larger than any, or a minimum below zero."""
    if value > _MAXIMA[key]:
        return _MAXIMA[key] if key.startswith("min") else None
    return int(value) if value == int(value) else value


def _multiple(value: float) -> float | None:
    """Returns a divisor of `multipleOf` that llguidance compiles: itself if it can be; None if none is known."""
    if not math.isfinite(value) or value <= 0:
        return value if value <= 0 else None
    if _compiles(value):
        return value
    exact = _exact(value)
    scale = max(0, -int(Decimal(repr(value)).as_tuple().exponent))
    divisor = int(exact * 10**scale)
    for factor in _FACTORS:
        while divisor > _MAX_MULTIPLE and divisor % factor == 0:
            divisor //= factor
    candidates = [divisor / 10**scale, 1 / 10**scale] if scale else [divisor]
    return next((number for number in candidates if _compiles(number)), None)


def _compiles(multiple: float) -> bool:
    """Returns whether llguidance soon finds numbers with this `multipleOf`, as a whole number that it scales by ten."""
    scaled = multiple
    while scaled % 1 and scaled < _MAX_POWER:
        scaled *= 10
    is_power = scaled <= _MAX_POWER and Fraction(scaled) == _power_below(max(Fraction(scaled), Fraction(1)))
    return scaled > 0 and scaled % 1 == 0 and (scaled <= _MAX_MULTIPLE or is_power)


def _exact(value: float) -> Fraction:
    """Returns the value of a number as it is written."""
    return Fraction(value) if isinstance(value, int) else Fraction(Decimal(repr(value)))


def _ranges(node: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the keywords of a range of numbers, None where it ends nowhere, and names those that are wider."""
    is_integer = "number" not in _types(node) and "integer" in _types(node)
    values = {key: node[key] for key in _RANGES if _is_number(node.get(key))}
    changed: dict[str, Any] = {}
    widened: list[str] = []
    for key, value in values.items():
        is_upper, is_exclusive = key.endswith("aximum"), key.startswith("exclusive")
        if is_upper and is_integer and value == _MAX_INT64 and not is_exclusive:
            continue
        bound = _Lower(_exact(value) if math.isfinite(value) else value, is_exclusive)
        wider = _wider(bound.negated() if is_upper else bound, is_integer=is_integer)
        wider = wider.negated() if wider is not None and is_upper else wider
        if wider != bound:
            entry = _entry(wider, is_upper=is_upper)
            changed |= {key: None} | ({} if entry.keys() & values.keys() - {key} else entry)
            widened.append(key)
    return changed, [*widened, *_touching(node, is_integer=is_integer)]


def _types(node: Mapping[str, Any]) -> set[str]:
    named = node.get("type", "number")
    names = named if isinstance(named, list) else [named]
    return {name for name in names if isinstance(name, str)}


def _entry(bound: _Lower | None, *, is_upper: bool) -> dict[str, Any]:
    if bound is None:
        return {}
    name = "maximum" if is_upper else "minimum"
    key = f"exclusive{name.capitalize()}" if bound.is_exclusive else name
    value = Fraction(bound.value)
    return {key: int(value) if value.denominator == 1 else float(value)}


def _wider(bound: _Lower, *, is_integer: bool) -> _Lower | None:
    """Returns the nearest lower bound that llguidance compiles and that is not above; None if there is none."""
    value = bound.value
    if value < -(_FARTHEST_INTEGER if is_integer else _FARTHEST_NUMBER):
        return None
    nearest = _NEAREST_OPEN_INTEGER if is_integer else _NEAREST_OPEN_NUMBER
    if value > nearest:
        return _Lower(Fraction(nearest), is_exclusive=False)
    if 0 < value < _MIN_PART:
        return _Lower(Fraction(0), is_exclusive=True)
    if -_MAX_WHOLE <= value <= _MAX_WHOLE:
        return bound
    below = _double_below(math.floor(value)) if is_integer else _power_below(Fraction(value))
    return bound if below == value else _Lower(Fraction(below), is_exclusive=False)


def _double_below(value: int) -> int:
    """Returns the largest integer up to another that is a double."""
    double = float(value)
    return int(double) if int(double) <= value else int(math.nextafter(double, -math.inf))


def _power_below(value: Fraction) -> int:
    """Returns the nearest power of ten that is not above a positive number, or its negative for a negative one."""
    digits = len(str(math.floor(abs(value))))
    if value > 0:
        return int(10 ** (digits - 1))
    return -int(10 ** (digits - 1) if -value == 10 ** (digits - 1) else 10**digits)


def _touching(node: Mapping[str, Any], *, is_integer: bool) -> list[str]:
    """Returns the exclusive bounds that are whole numbers, and less than one apart from the other bound.

    llguidance lets numbers equal such a bound, as in "above 1 and below 1.5".
    """
    if is_integer:
        return []
    lower = [node[key] for key in ("minimum", "exclusiveMinimum") if _is_number(node.get(key))]
    upper = [node[key] for key in ("maximum", "exclusiveMaximum") if _is_number(node.get(key))]
    if not lower or not upper or not 0 < min(upper) - max(lower) < 1:
        return []
    return [key for key in ("exclusiveMinimum", "exclusiveMaximum") if _is_number(node.get(key)) and node[key] % 1 == 0]
