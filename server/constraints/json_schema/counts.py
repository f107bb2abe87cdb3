"""Keywords that count properties and entries, as unions of schemas that llguidance enforces."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from .complement import Schema, union
from .shapes import ALL_TYPES, InexactError, Shapes, identity, required

_MAX_ALTERNATIVES: Final = 64
"""Maximum number of alternatives of one keyword."""

_NO_ARRAY: Final[Schema] = {"type": sorted(ALL_TYPES - {"array", "integer"})}


def num_properties(node: Mapping[str, Any], names: Sequence[str], *, is_closed: bool) -> Schema:
    """Returns a union for `minProperties` and `maxProperties`, by the optional properties that are present.

    Args:
      names: Names of all properties that the object's schemas have.
      is_closed: Whether the object has no others.

    Raises:
      InexactError: The union has too many alternatives, or the object has patterns of names.
    """
    fixed = [name for name in names if name in required(node)]
    optional = [name for name in names if name not in fixed]
    low = max(_count(node, "minProperties", 0) - len(fixed), 0)
    high = _count(node, "maxProperties", math.inf) - len(fixed)
    if high < 0 or "patternProperties" in node or (not is_closed and {*required(node)} - {*names}):
        raise InexactError
    if is_closed and high >= len(optional):
        high = math.inf
    if not low and high == math.inf:
        return True
    counts = {key: node[key] for key in ("minProperties", "maxProperties") if key in node}
    choices = _closed(optional, low, high) if is_closed else _open(optional, low, high, counts)
    return union(itertools.chain(_bounded(choices), [{"type": sorted(ALL_TYPES - {"object", "integer"})}]))


def _closed(optional: Sequence[str], low: int, high: float) -> Iterator[Schema]:
    if high == math.inf:
        yield from ({"type": "object", "required": list(some)} for some in itertools.combinations(optional, low))
    elif not low:
        num_left_out = len(optional) - max(int(high), 0)
        for some in itertools.combinations(optional, num_left_out):
            yield {"type": "object", "properties": dict.fromkeys(some, False)}
    else:
        for num in range(low, int(high) + 1):
            yield from (_just(some, optional) for some in itertools.combinations(optional, num))


def _open(optional: Sequence[str], low: int, high: float, counts: Mapping[str, int]) -> Iterator[Schema]:
    """Yields alternatives by the named properties that are present; llguidance counts the others."""
    most = len(optional) if high != math.inf else low - 1
    for num in range(min(most, int(min(high, len(optional)))) + 1):
        yield from ({**_just(some, optional), **counts} for some in itertools.combinations(optional, num))
    if high == math.inf:
        yield from ({"type": "object", "required": list(some)} for some in itertools.combinations(optional, low))


def _just(some: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """Returns a schema of objects that have the given optional properties and not the others."""
    others = dict.fromkeys((name for name in optional if name not in some), False)
    return {"type": "object", "required": list(some), "properties": others}


def contains(node: Mapping[str, Any], exactly: Callable[[Any], Schema]) -> Schema:
    """Returns a union for `contains`, by the place of the entry.

    Raises:
      InexactError: The array has no small `maxItems`, or several entries are counted.
    """
    least = node.get("minContains", 1)
    if least == 0 and "maxContains" not in node:
        return True
    most = _count(node, "maxItems", math.inf)
    if least != 1 or "maxContains" in node or most > _MAX_ALTERNATIVES:
        raise InexactError
    entry = exactly(node["contains"])
    places = range(int(most))
    found = ({"type": "array", "items": [*([True] * place), entry], "minItems": place + 1} for place in places)
    return union([*found, _NO_ARRAY])


def unique_items(node: Mapping[str, Any], shapes: Shapes) -> Schema:
    """Returns a union for `uniqueItems`: all arrays of a few values.

    Raises:
      InexactError: The entries are not among a few values, or there are too many arrays.
    """
    most = _count(node, "maxItems", math.inf)
    if node["uniqueItems"] is not True or most <= 1:
        return True
    items = node.get("items", True)
    values = shapes.values(items) if isinstance(items, dict) else None
    if values is None:
        raise InexactError
    distinct = list({identity(value): value for value in values}.values())
    sizes = range(_count(node, "minItems", 0), min(int(min(most, len(distinct))), len(distinct)) + 1)
    arrays = (list(some) for size in sizes for some in itertools.permutations(distinct, size))
    return union([{"enum": list(_bounded(arrays))}, _NO_ARRAY])


def _bounded[T](choices: Iterator[T]) -> Iterator[T]:
    """Yields choices.

    Raises:
      InexactError: There are too many choices.
    """
    for number, choice in enumerate(choices):
        if number == _MAX_ALTERNATIVES:
            raise InexactError
        yield choice


def _count[D: (int, float)](node: Mapping[str, Any], key: str, default: D) -> int | D:
    value = node.get(key, default)
    if value is not default and not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        raise InexactError
    return value
