"""Keywords that llguidance lacks, as unions of schemas that it enforces: `not`, `if`, `oneOf`, dependencies and counts.

A complement accepts exactly the values that another schema refuses.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Protocol

from .schema_shapes import (
    ALL_TYPES,
    InexactError,
    Shapes,
    WorkLimit,
    identity,
    is_closed,
    own_values,
    required,
    type_of,
)
from .schema_strings import MAX_CHARACTERS, MAX_LENGTH, all_but

type Schema = Mapping[str, Any] | bool

_ASSERTIONS: Final = frozenset(
    {
        *("$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas"),
        *("else", "exclusiveMaximum", "exclusiveMinimum", "format", "if", "maxProperties", "minProperties"),
        *("multipleOf", "oneOf", "pattern", "patternProperties", "prefixItems", "then", "uniqueItems"),
    }
)
"""Keywords from which no complement can be built."""

_OF_OTHERS: Final = frozenset(
    {"additionalItems", "additionalProperties", "items", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
)
"""Keywords from which no complement can be built, unless they allow everything."""

_OPPOSITES: Final[Mapping[str, tuple[str, Callable[[int], int], str]]] = {
    "maxItems": ("minItems", lambda limit: limit + 1, "array"),
    "maxLength": ("minLength", lambda limit: limit + 1, "string"),
    "minItems": ("maxItems", lambda limit: limit - 1, "array"),
    "minLength": ("maxLength", lambda limit: limit - 1, "string"),
}

_OPPOSITE_RANGES: Final = {
    "exclusiveMaximum": "minimum",
    "exclusiveMinimum": "maximum",
    "maximum": "exclusiveMinimum",
    "minimum": "exclusiveMaximum",
}

DEPENDENCIES: Final = ("dependencies", "dependentRequired", "dependentSchemas")

_MAX_DEPENDENCIES: Final = 6
"""Maximum number of dependencies of an object. Each doubles the alternatives."""

_MAX_ALTERNATIVES: Final = 64
"""Maximum number of alternatives of one keyword."""

_NO_ARRAY: Final[Schema] = {"type": sorted(ALL_TYPES - {"array", "integer"})}


def union(schemas: Iterable[Schema]) -> Schema:
    """Returns a schema of the values that fit at least one of several."""
    kept = [each for each in schemas if each is not False]
    if True in kept or not kept:
        return bool(kept)
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


def intersection(schemas: Iterable[Schema]) -> Schema:
    """Returns a schema of the values that fit all of several."""
    kept = [each for each in schemas if each is not True]
    if False in kept or not kept:
        return not kept
    return kept[0] if len(kept) == 1 else {"allOf": kept}


class Complements:
    """Builds complements.

    Args:
      shapes: Facts about schemas.
      resolve: Returns the subschema that a reference points to.
      exactly: Returns a schema as llguidance enforces it; raises `InexactError` if it would drop a keyword.
      work: Limit of the work.
    """

    def __init__(
        self, shapes: Shapes, resolve: Callable[[str], Any], exactly: Callable[[Any], Schema], work: WorkLimit
    ) -> None:
        self._shapes = shapes
        self._resolve = resolve
        self._exactly = exactly
        self._work = work

    def of(self, node: Any, within: Any = True, depth: int = 0) -> Schema:
        """Returns the complement of a schema.

        Args:
          within: Schema that the values also fit, which makes complements smaller.

        Raises:
          InexactError: The complement has no schema that llguidance enforces.
        """
        self._work.spend(depth)
        if isinstance(node, bool):
            return not node
        if not isinstance(node, dict):
            raise InexactError
        return union(each for key in node for each in self._of_keyword(node, key, within, depth))

    def _of_keyword(self, node: Mapping[str, Any], key: str, within: Any, depth: int) -> Iterator[Schema]:
        """Yields schemas of the values that don't fit one keyword."""
        value = node[key]
        match key:
            case "type":
                yield self._of_types(value, within)
            case "const" | "enum":
                yield self._of_values(own_values(node) or [], within)
            case "required":
                yield from ({"type": "object", "properties": {name: False}} for name in required(node))
            case "properties":
                yield from self._of_properties(value, within, depth)
            case "additionalProperties" if is_closed(node) and (names := self._shapes.only_names(within)) is not None:
                others = [name for name in names if name not in node.get("properties", ())]
                yield from ({"type": "object", "required": [name]} for name in others)
            case "minProperties" if value == 1:
                yield {"const": {}}
            case "not":
                yield self._exactly(value)
            case "$ref":
                yield self.of(self._resolve(value), within, depth + 1)
            case "allOf":
                yield from (self.of(each, within, depth + 1) for each in value)
            case "anyOf":
                yield intersection(self.of(each, within, depth + 1) for each in value)
            case _ if key in _OPPOSITES:
                opposite, limit, kind = _OPPOSITES[key]
                yield False if key.startswith("min") and value == 0 else {"type": kind, opposite: limit(value)}
            case _ if key in _OPPOSITE_RANGES and not isinstance(value, bool):
                if isinstance(node.get("exclusiveMinimum"), bool) or isinstance(node.get("exclusiveMaximum"), bool):
                    raise InexactError
                yield {"type": "number", _OPPOSITE_RANGES[key]: value}
            case _ if key in _ASSERTIONS or (key in _OF_OTHERS and value is not True and value != {}):
                raise InexactError

    def _of_types(self, named: Any, within: Any) -> Schema:
        named = {named} if isinstance(named, str) else {*named}
        others = self._shapes.types(within) - named - ({"integer"} if "number" in named else set())
        if "number" in others and "integer" in named:
            raise InexactError  # numbers with a fraction
        return _of_type(others)

    def _of_properties(self, properties: Mapping[str, Any], within: Any, depth: int) -> Iterator[Schema]:
        for name, schema in properties.items():
            others = self.of(schema, self._shapes.property(within, name), depth + 1)
            if others is not False:
                yield {"type": "object", "required": [name], "properties": {name: others}}

    def _of_values(self, values: Sequence[Any], within: Any) -> Schema:
        self._work.spend_values(len(values))
        excluded = {*map(identity, values)}
        known = self._shapes.values(within)
        if known is not None:
            left = [value for value in known if identity(value) not in excluded]
            return {"enum": left} if left else False
        types = self._shapes.types(within)
        touched = frozenset(map(type_of, values)) & types
        if touched & {"integer", "number"}:
            touched |= types & {"integer", "number"}
        if touched & {"array", "object"}:
            raise InexactError
        strings = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if type_of(value) in ("integer", "number")]
        return union(
            [
                _of_type(types - touched),
                *([_of_strings(strings)] if "string" in touched else []),
                *(_of_numbers(numbers, types) if touched & {"integer", "number"} else []),
                *({"const": flag} for flag in (True, False) if "boolean" in touched and identity(flag) not in excluded),
            ]
        )


def _of_type(types: frozenset[str]) -> Schema:
    """Returns a schema of all values of several types."""
    if types == ALL_TYPES:
        return True
    named = sorted(types - {"integer"} if "number" in types else types)
    return {"type": named[0] if len(named) == 1 else named} if named else False


def _of_strings(excluded: Sequence[str]) -> Schema:
    if sum(map(len, excluded)) > MAX_CHARACTERS or max(map(len, excluded)) > MAX_LENGTH:
        raise InexactError
    return {"type": "string", "pattern": all_but(excluded)}


def _of_numbers(excluded: Sequence[float], types: frozenset[str]) -> Iterator[Schema]:
    """Yields schemas of the ranges between numbers."""
    limits = sorted({*excluded})
    if "number" in types:
        if len(limits) > 1 and not all(limit == int(limit) for limit in limits):
            raise InexactError  # llguidance takes 1 for above 1 and below 1.5
        yield {"type": "number", "exclusiveMaximum": limits[0]}
        for low, high in pairwise(limits):
            yield {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
        yield {"type": "number", "exclusiveMinimum": limits[-1]}
        return
    whole = [int(limit) for limit in limits if limit == int(limit)]
    yield {"type": "integer", "maximum": whole[0] - 1}
    for low, high in pairwise(whole):
        if high - low > 1:
            yield {"type": "integer", "minimum": low + 1, "maximum": high - 1}
    yield {"type": "integer", "minimum": whole[-1] + 1}


class Preparation(Protocol):
    """Rewriting of a whole schema."""

    def branch(self, node: Any, *, close: bool = False) -> Schema:
        """Returns the rewritten form of a schema of the same value."""

    def exactly(self, node: Any) -> Schema:
        """Returns the rewritten form of a schema; raises `InexactError` if a keyword would be dropped."""

    def closed(self, node: Mapping[str, Any]) -> Schema:
        """Returns a schema with the properties that an object has once it is closed."""


class Conditions:
    """Rewrites conditions of one schema. Each method raises `InexactError` if it cannot be done exactly."""

    def __init__(self, preparation: Preparation, shapes: Shapes, complements: Complements) -> None:
        self._preparation = preparation
        self._shapes = shapes
        self._complements = complements

    def one_of(self, node: Mapping[str, Any], *, close: bool, branches_close: bool) -> Schema:
        """Returns a union for `oneOf`, whose branches exclude each other if they overlap.

        Args:
          close: Whether the object that the schema describes is closed as a whole.
          branches_close: Whether each branch is closed separately.
        """
        branches, rest = node["oneOf"], without(node, "oneOf")
        around = self._preparation.closed(node) if close and not branches_close else True
        excluded = []
        for index, branch in enumerate(branches):
            own = self._preparation.closed(branch) if branches_close and isinstance(branch, dict) else True
            whole = {"allOf": [rest, around, branch, own]}
            others = [other for place, other in enumerate(branches) if place != index]
            excluded.append([self._complements.of(each, whole) for each in others if not self._excludes(whole, each)])
        pairs = zip(branches, excluded, strict=True)
        return union(intersection([self._preparation.branch(b, close=branches_close), *out]) for b, out in pairs)

    def not_(self, node: Mapping[str, Any]) -> Schema:
        """Returns the complement of `not`."""
        return self._complements.of(node["not"], without(node, "not"))

    def if_(self, node: Mapping[str, Any]) -> Schema:
        """Returns a union for `if`, `then` and `else`."""
        then, other = node.get("then", True), node.get("else", True)
        if then is True and other is True:
            return True
        fails = self._complements.of(node["if"], without(node, "if", "then", "else"))
        holds = self._preparation.exactly(node["if"])
        branch = self._preparation.branch
        return union([intersection([holds, branch(then)]), intersection([fails, branch(other)])])

    def dependencies(self, node: Mapping[str, Any], key: str) -> Schema:
        """Returns an intersection for the properties that require others or another schema."""
        rules, always = node[key], required(node) if self._shapes.types(node) == {"object"} else []
        if not isinstance(rules, dict) or len(rules.keys() - {*always}) > _MAX_DEPENDENCIES:
            raise InexactError
        return intersection(self._dependency(name, rule, name in always) for name, rule in rules.items())

    def _dependency(self, name: str, rule: Any, is_required: bool) -> Schema:
        there: Schema = {"type": "object", "required": [name]}
        if isinstance(rule, str):
            rule = [rule]  # draft 3
        needed: Schema = {"required": rule} if isinstance(rule, list) else self._preparation.branch(rule)
        if is_required:
            return needed
        return union([{"properties": {name: False}}, intersection([there, needed])])

    def _excludes(self, whole: Any, other: Any) -> bool:
        try:
            return self._shapes.are_disjoint(whole, other)
        except InexactError:
            return False


def without(node: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Returns a schema without the given keywords."""
    return {key: value for key, value in node.items() if key not in keys}


def num_alternatives(schemas: Iterator[Schema]) -> int:
    """Returns the maximum number of alternatives that several schemas together have for a value."""
    product = 1
    for schema in schemas:
        if isinstance(schema, dict):
            product *= max(1, len(schema.get("anyOf", ())))
            product *= num_alternatives(each for each in schema.get("allOf", ()) if isinstance(each, dict))
    return product


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
