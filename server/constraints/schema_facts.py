"""Facts about the values of a JSON schema for llguidance: types, disjoint schemas, and schemas that have no value.

A schema has no value that ends if it is a contradiction, or an object or list that must contain another of its kind.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

ALL_TYPES: Final = frozenset({"null", "boolean", "number", "integer", "string", "array", "object"})
"""Types of JSON. If `integer` is also present, `number` stands for numbers with a fraction."""

_SCALARS: Final = ALL_TYPES - {"array", "object"}

_MAX_DEPTH: Final = 8
"""Maximum depth to which the parts of a schema are examined."""

_MAX_WORK: Final = 40_000
"""Maximum number of subschemas that are examined; each takes some microseconds."""

_VALUES_AT_A_TIME: Final = 8
"""Number of `enum` values that count as much work as one subschema."""

_MAX_PASSES: Final = 8
"""Maximum number of times that all definitions are searched for values that end."""

_MAPS: Final = ("properties", "patternProperties")

_OTHERS: Final = ("allOf", "anyOf", "prefixItems", "items", "additionalItems", "additionalProperties")
"""Keywords with a schema or a list of schemas."""

type Schema = Mapping[str, Any] | bool


class _TooMuchWorkError(Exception):
    """Too many subschemas would need to be examined, or they are nested too deeply."""


_UNKNOWN: Final = (_TooMuchWorkError, AttributeError, TypeError)
"""Errors after which a fact is unknown: too much work, or a malformed schema, which llguidance reports."""


class Facts:
    """Facts about a schema, within a limit of work.

    Args:
      definitions: Targets of the references, by name.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._left = _MAX_WORK

    def are_disjoint(self, one: Schema, other: Schema) -> bool:
        """Returns whether no value is known to fit both schemas."""
        try:
            return self._are_disjoint(one, other, 0)
        except _UNKNOWN:
            return False

    def is_empty(self, node: Mapping[str, Any]) -> bool:
        """Returns whether a schema is known to have no value that ends, given that `false` replaces such subschemas."""
        try:
            return self._is_empty(node)
        except _UNKNOWN:
            return False

    def _is_empty(self, node: Mapping[str, Any]) -> bool:
        if False in node.get("allOf", ()) or ("$ref" in node and self._target(node["$ref"]) is False):
            return True
        parts = list(self._parts(node, 0))
        types = self._types(parts)
        if branches := [each for each in node.get("anyOf", ()) if each is not False]:
            types &= frozenset.union(*(self._types(list(self._parts(each, 1))) for each in branches))
        elif "anyOf" in node:
            return True
        if types & _SCALARS or any(own_values(part) for part in parts):
            return not types
        can_be_object = "object" in types and not any(each is False for each in _properties(parts))
        return not can_be_object and not ("array" in types and not any(each is False for each in _entries(parts)))

    def _target(self, pointer: str) -> Any:
        return self._definitions[pointer.rpartition("/")[2]]

    def _spend(self, work: int, depth: int = 0) -> None:
        self._left -= work
        if self._left < 0 or depth > _MAX_DEPTH:
            raise _TooMuchWorkError

    def _parts(self, node: Any, depth: int) -> Iterator[Mapping[str, Any]]:
        """Yields the schemas that a value must all fit: the schema itself, targets of references, and entries of
        `allOf`.
        """
        self._spend(1, depth)
        if not isinstance(node, dict):
            return
        yield node
        if "$ref" in node:
            yield from self._parts(self._target(node["$ref"]), depth + 1)
        for each in node.get("allOf", ()):
            yield from self._parts(each, depth + 1)

    def _types(self, parts: Sequence[Mapping[str, Any]]) -> frozenset[str]:
        self._spend(sum(len(own_values(part) or ()) for part in parts) // _VALUES_AT_A_TIME)
        return ALL_TYPES.intersection(*map(own_types, parts))

    def _are_disjoint(self, one: Schema, other: Schema, depth: int) -> bool:
        self._spend(1, depth)
        if one is False or other is False:
            return True
        ones, others = list(self._parts(one, depth)), list(self._parts(other, depth))
        of_one, of_other = self._types(ones), self._types(others)
        if not of_one & of_other or self._differ(ones, others):
            return True
        if {"object"} == of_one == of_other and self._differ_in_a_property(ones, others, depth):
            return True
        return self._is_disjoint_union(ones, other, depth) or self._is_disjoint_union(others, one, depth)

    def _differ(self, ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> bool:
        """Returns whether both sides name their values, and have none in common."""
        some, more = (
            min((values for part in side if (values := own_values(part)) is not None), key=len, default=None)
            for side in (ones, others)
        )
        if some is None or more is None:
            return False
        self._spend(len(some) * len(more) // _VALUES_AT_A_TIME)
        return not any(value in more for value in some)

    def _differ_in_a_property(
        self, ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], depth: int
    ) -> bool:
        parts = (*ones, *others)
        for name in dict.fromkeys(name for part in parts for name in required(part)):
            if any(_named(part, name) is False for part in parts):
                return True
            one, other = ({"allOf": [_named(part, name) for part in side]} for side in (ones, others))
            if self._are_disjoint(one, other, depth + 1):
                return True
        return False

    def _is_disjoint_union(self, parts: Sequence[Mapping[str, Any]], other: Schema, depth: int) -> bool:
        unions = (part["anyOf"] for part in parts if "anyOf" in part)
        return any(all(self._are_disjoint(each, other, depth + 1) for each in union) for union in unions)


def without_endless(schema: Schema, definitions: Mapping[str, Any]) -> tuple[Schema, dict[str, Any]]:
    """Returns a schema and its definitions in which `false` replaces subschemas without a value that ends.

    llguidance would begin such a value, unless it finds a contradiction without following a reference. Definitions end
    if those that they need do, which is found in several passes, and assumed after many.
    """
    kept: dict[str, Any] = dict.fromkeys(definitions, False)
    facts = Facts(kept)
    for _ in range(_MAX_PASSES):
        before = {**kept}
        for name in reversed(kept):
            kept[name] = _kept(definitions[name], facts)
        if kept == before:
            return _kept(schema, facts), {name: node for name, node in kept.items() if node is not False}
    return schema, {**definitions}


def _kept(node: Any, facts: Facts) -> Any:
    if isinstance(node, list):
        return [_kept(each, facts) for each in node]
    if not isinstance(node, dict):
        return node
    result = {key: _kept_keyword(key, value, facts) for key, value in node.items()}
    return False if facts.is_empty(result) else result


def _kept_keyword(key: str, value: Any, facts: Facts) -> Any:
    if key in _MAPS and isinstance(value, dict):
        return {name: _kept(each, facts) for name, each in value.items()}
    return _kept(value, facts) if key in _OTHERS else value


def is_closed(node: Mapping[str, Any]) -> bool:
    """Returns whether a schema itself names all properties that objects may have."""
    return node.get("additionalProperties") is False and "patternProperties" not in node


def own_values(node: Mapping[str, Any]) -> Sequence[Any] | None:
    """Returns the values of a schema's own `enum` or `const`."""
    if "const" in node:
        return [node["const"]]
    return node["enum"] if isinstance(node.get("enum"), list) else None


def own_types(node: Mapping[str, Any]) -> frozenset[str]:
    """Returns the types that a schema itself allows."""
    named = node.get("type", list(ALL_TYPES))
    types = frozenset([named] if isinstance(named, str) else [each for each in named if isinstance(each, str)])
    if "number" in types:
        types |= {"integer"}
    values = own_values(node)
    return types if values is None else types & frozenset(map(_type_of, values))


def required(node: Mapping[str, Any]) -> list[str]:
    """Returns the properties that a schema itself requires."""
    names = node.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _type_of(value: Any) -> str:
    """Returns the type of a value. A number without a fraction is an integer."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "integer" if value == int(value) else "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _named(node: Mapping[str, Any], name: str) -> Any:
    """Returns the schema that a part has for a property; True if it has none, or only by a pattern."""
    if isinstance(properties := node.get("properties"), dict) and name in properties:
        return properties[name]
    return not is_closed(node)


def _properties(parts: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yields the schemas of properties that an object must have."""
    names = dict.fromkeys(name for part in parts for name in required(part))
    return (_named(part, name) for name in names for part in parts)


def _entries(parts: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yields the schemas of entries that a list must have."""
    least = max(part.get("minItems", 0) for part in parts)
    for part in parts:
        items = part.get("items", True)
        first, others = (items, part.get("additionalItems", True)) if isinstance(items, list) else ([], items)
        yield from [*part.get("prefixItems", first), others][:least]
