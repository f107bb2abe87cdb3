"""Facts about the values of a JSON schema, and whether two schemas are disjoint."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from .closing import UNIONS

ALL_TYPES: Final = frozenset({"null", "boolean", "number", "integer", "string", "array", "object"})
"""Types of JSON. If `integer` is also present, `number` stands for numbers with a fraction."""

MAX_DEPTH: Final = 8
"""Maximum depth to which the parts of a schema are examined."""

_MAX_WORK: Final = 20_000
"""Maximum number of subschemas of a schema that are examined; each takes some microseconds."""

_VALUES_AT_A_TIME: Final = 8
"""Number of `enum` values that count as much work as one subschema."""

type Schema = Mapping[str, Any] | bool


class InexactError(Exception):
    """A keyword cannot be rewritten so that exactly the same values fit."""


class WorkLimit:
    """Limit of the work for one schema."""

    def __init__(self) -> None:
        self._left = _MAX_WORK

    def spend(self, depth: int = 0) -> None:
        """Counts a subschema.

        Raises:
          InexactError: The subschema is nested too deeply, or there are too many.
        """
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise InexactError

    def spend_values(self, num_values: int) -> None:
        """Counts values of an `enum`.

        Raises:
          InexactError: There are too many values.
        """
        self._left -= num_values // _VALUES_AT_A_TIME
        self.spend()


class Shapes:
    """Facts about schemas.

    Args:
      resolve: Returns the subschema that a reference points to.
      work: Limit of the work.
    """

    def __init__(self, resolve: Callable[[str], Any], work: WorkLimit) -> None:
        self._resolve = resolve
        self._work = work

    def parts(self, node: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
        """Yields the schemas that a value must all fit: the schema itself, targets of references, and entries of
        `allOf`.
        """
        self._work.spend(depth)
        if not isinstance(node, dict):
            return
        yield node
        if isinstance(node.get("$ref"), str):
            yield from self.parts(self._resolve(node["$ref"]), depth + 1)
        if isinstance(node.get("allOf"), list):
            for each in node["allOf"]:
                yield from self.parts(each, depth + 1)

    def types(self, node: Any) -> frozenset[str]:
        """Returns the types that values may have."""
        types = ALL_TYPES
        for part in self.parts(node):
            self._work.spend_values(len(own_values(part) or ()))
            types &= own_types(part)
        return types

    def implies_type(self, node: Mapping[str, Any]) -> bool:
        """Returns whether the reference or the `anyOf` of a schema allows no other types than its `type`."""
        targets = [{"$ref": node["$ref"]}] if "$ref" in node else node.get("anyOf", [])
        return bool(targets) and all(self.types(each) <= own_types({"type": node["type"]}) for each in targets)

    def values(self, node: Any) -> Sequence[Any] | None:
        """Returns the values that `enum` or `const` names; None if neither does."""
        listed = [each for each in map(own_values, self.parts(node)) if each is not None]
        return min(listed, key=len, default=None)

    def property(self, node: Any, name: str) -> Schema:
        """Returns a schema that the value of a property must fit if the property is present."""
        return {"allOf": [named(part, name) for part in self.parts(node)]}

    def only_names(self, node: Any) -> list[str] | None:
        """Returns the only properties that objects may have; None if they may have others."""
        closed = (part for part in self.parts(node) if is_closed(part))
        return next(([*part.get("properties", ())] for part in closed), None)

    def are_disjoint(self, one: Any, other: Any, depth: int = 0) -> bool:
        """Returns whether no value is known to fit both schemas."""
        self._work.spend(depth)
        if one is False or other is False:
            return True
        ones, others = list(self.parts(one, depth)), list(self.parts(other, depth))
        types = self.types(one) & self.types(other)
        if not types or _differ(self.values(one), self.values(other)):
            return True
        if any(_is_before(*pair, types) for a in ones for b in others for pair in ((a, b), (b, a))):
            return True
        if self.types(one) == {"object"} == self.types(other) and self._part_in_a_property(ones, others, depth):
            return True
        return self._is_disjoint_union(ones, other, depth) or self._is_disjoint_union(others, one, depth)

    def _part_in_a_property(
        self, ones: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], depth: int
    ) -> bool:
        parts = (*ones, *others)
        for name in dict.fromkeys(name for part in parts for name in required(part)):
            if any(False is named(part, name) for part in parts):
                return True
            one, other = ({"allOf": [named(part, name) for part in side]} for side in (ones, others))
            if self.are_disjoint(one, other, depth + 1):
                return True
        return False

    def _is_disjoint_union(self, parts: Sequence[Mapping[str, Any]], other: Any, depth: int) -> bool:
        unions = (part[key] for part in parts for key in UNIONS if isinstance(part.get(key), list))
        return any(all(self.are_disjoint(each, other, depth + 1) for each in union) for union in unions)


def is_closed(node: Mapping[str, Any]) -> bool:
    """Returns whether a schema itself names all properties that objects may have."""
    return node.get("additionalProperties") is False and "patternProperties" not in node


def own_values(node: Mapping[str, Any]) -> Sequence[Any] | None:
    """Returns the values of a schema's own `enum` or `const`."""
    if "const" in node:
        return [node["const"]]
    return node["enum"] if isinstance(node.get("enum"), list) else None


def required(node: Mapping[str, Any]) -> list[str]:
    """Returns the properties that a schema itself requires."""
    names = node.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def type_of(value: Any) -> str:
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


def identity(value: Any) -> str:
    """Returns a text that is the same for equal values: 1 equals 1.0, but not true."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return f"[{','.join(map(identity, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(name)}:{identity(value[name])}' for name in sorted(value))}}}"
    return json.dumps(value)


def own_types(node: Mapping[str, Any]) -> frozenset[str]:
    """Returns the types that a schema itself allows."""
    named = node.get("type", list(ALL_TYPES))
    types = frozenset([named] if isinstance(named, str) else [each for each in named if isinstance(each, str)])
    if "number" in types:
        types |= {"integer"}
    values = own_values(node)
    return types if values is None else types & frozenset(map(type_of, values))


def _differ(one: Sequence[Any] | None, other: Sequence[Any] | None) -> bool:
    if one is None or other is None:
        return False
    return not {*map(identity, one)} & {*map(identity, other)}


def named(node: Mapping[str, Any], name: str) -> Any:
    """Returns the schema that a part has for a property; True if it has none, or only by a pattern."""
    if isinstance(properties := node.get("properties"), dict) and name in properties:
        return properties[name]
    return not is_closed(node)


_BOUNDS: Final = (
    ("maxLength", "minLength", frozenset({"string"})),
    ("maxItems", "minItems", frozenset({"array"})),
    ("maximum", "minimum", frozenset({"integer", "number"})),
)


def _is_before(one: Mapping[str, Any], other: Mapping[str, Any], types: frozenset[str]) -> bool:
    """Returns whether an upper limit of one schema is below a lower limit of the other, for the only type of both."""
    for upper, lower, limited in _BOUNDS:
        high, low = one.get(upper), other.get(lower)
        if types <= limited and isinstance(high, int | float) and isinstance(low, int | float) and high < low:
            return True
    return False
