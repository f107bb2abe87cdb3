"""Facts about the values of a JSON schema: types, disjoint schemas, objects that are closed together, and no values.

A schema may have no value that ends: contradictions, and objects and lists that each contain another of their kind.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .schema_strings import few

ALL_TYPES: Final = frozenset({"null", "boolean", "number", "integer", "string", "array", "object"})
"""Types of JSON. If `integer` is also present, `number` stands for numbers with a fraction."""

MAX_DEPTH: Final = 8
"""Maximum depth to which the parts of a schema are examined."""

_MAX_WORK: Final = 20_000
"""Maximum number of subschemas of a schema that are examined; each takes some microseconds."""

_VALUES_AT_A_TIME: Final = 8
"""Number of `enum` values that count as much work as one subschema."""

_MAX_ENDING_DEPTH: Final = 32
"""Maximum depth to which the contents of values are examined."""

UNIONS: Final = ("anyOf", "oneOf")

BRANCHES: Final = ("allOf", *UNIONS)

_NONE: Final[tuple[Any, ...]] = (False, {"not": {}}, {"not": True})
"""Schemas that no value fits."""

_DESCRIBING: Final = frozenset(
    {
        *("$ref", "additionalProperties", "allOf", "anyOf", "dependencies", "dependentRequired"),
        *("dependentSchemas", "else", "if", "minProperties", "oneOf", "patternProperties", "properties"),
        *("required", "then"),
    }
)
"""Keywords that say which properties an object has."""

_BOUNDS: Final = (
    ("maxLength", "minLength", frozenset({"string"})),
    ("maxItems", "minItems", frozenset({"array"})),
    ("maximum", "minimum", frozenset({"integer", "number"})),
)

_MAPS: Final = ("properties", "patternProperties")

_LISTS: Final = ("allOf", *UNIONS, "prefixItems")

_VALUES: Final = ("items", "additionalItems", "additionalProperties")

_SCALARS: Final = ALL_TYPES - {"array", "object"}

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


def _is_before(one: Mapping[str, Any], other: Mapping[str, Any], types: frozenset[str]) -> bool:
    """Returns whether an upper limit of one schema is below a lower limit of the other, for the only type of both."""
    for upper, lower, limited in _BOUNDS:
        high, low = one.get(upper), other.get(lower)
        if types <= limited and isinstance(high, int | float) and isinstance(low, int | float) and high < low:
            return True
    return False


type Resolve = Callable[[str], Any]
"""Returns the subschema that a reference points to."""


@dataclass(slots=True)
class Cluster:
    """Properties of an object that several subschemas describe together.

    Attributes:
      names: Property names of all subschemas, in order. A pattern of few names counts as these.
      patterns: Other property patterns of all subschemas, in order.
      required: Property names that a subschema requires, also if another property is present, in order.
      has_properties: Whether a subschema has `properties`, which may be empty.
      is_open: Whether the `additionalProperties` of a subschema allows some.
    """

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    required: dict[str, None] = field(default_factory=dict)
    has_properties: bool = False
    is_open: bool = False

    @property
    def allowed(self) -> list[str]:
        """Property names of the closed object: first declared names, then names that are only required."""
        return [*(self.names | self.required)]

    @property
    def can_close(self) -> bool:
        """Whether the object has properties, and no subschema allows additional ones."""
        return (self.has_properties or bool(self.names)) and not self.is_open

    def collect(self, node: Any, resolve: Resolve, spend: Callable[[], None] = lambda: None) -> None:
        """Adds the properties that a schema and its branches declare for the object.

        Args:
          spend: Called for each schema and branch.
        """
        self._collect(node, resolve, set(), spend)

    def _collect(self, node: Any, resolve: Resolve, seen: set[str], spend: Callable[[], None]) -> None:
        if not isinstance(node, dict):
            return
        spend()
        self.is_open |= node.get("additionalProperties", False) not in _NONE
        self.has_properties |= isinstance(node.get("properties"), dict)
        if isinstance(node.get("properties"), dict):
            self.names |= dict.fromkeys(node["properties"])
        for pattern in node["patternProperties"] if isinstance(node.get("patternProperties"), dict) else ():
            names = few(pattern)
            if names is None:
                self.patterns[pattern] = None
            else:
                self.names |= dict.fromkeys(names)
        for listed in _required_lists(node):
            self.required |= {name: None for name in listed if isinstance(name, str)}
        pointer = node.get("$ref")
        if isinstance(pointer, str) and pointer not in seen:
            seen.add(pointer)
            self._collect(resolve(pointer), resolve, seen, spend)
        for branch in _branches(node):
            self._collect(branch, resolve, seen, spend)
        condition = Cluster(self.names, self.patterns)  # which requires nothing
        condition._collect(node.get("if"), resolve, seen, spend)


def _required_lists(node: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yields the lists of properties that a schema requires, always or together with another property."""
    rules = (node[key] for key in ("dependencies", "dependentRequired") if isinstance(node.get(key), dict))
    for names in (node.get("required"), *itertools.chain.from_iterable(rule.values() for rule in rules)):
        if isinstance(names, list):
            yield names


def _branches(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the subschemas that describe the same value."""
    for key in BRANCHES:
        if isinstance(node.get(key), list):
            yield from node[key]
    for key in ("then", "else"):
        yield node.get(key)
    if isinstance(node.get("dependentSchemas"), dict):
        yield from node["dependentSchemas"].values()


def is_plain_union(node: Mapping[str, Any]) -> bool:
    """Returns whether only a union says which properties an object has, so that each branch is a separate object.

    An `allOf` is a union of one branch if its other entries say nothing of properties, as generators write references.
    """
    keys = _DESCRIBING & node.keys()
    return keys in ({"anyOf"}, {"oneOf"}) or (keys == {"allOf"} and _describes_one(node["allOf"]))


def _describes_one(branches: Any) -> bool:
    return (
        isinstance(branches, list)
        and sum(isinstance(each, dict) and not _DESCRIBING.isdisjoint(each) for each in branches) <= 1
    )


def is_plain_reference(node: Mapping[str, Any]) -> bool:
    """Returns whether only a reference says which properties an object has, so that its target is closed instead."""
    return _DESCRIBING & node.keys() == {"$ref"}


def without_endless(schema: Schema) -> dict[str, Any] | None:
    """Returns a schema for llguidance in which `false` replaces subschemas without a value that ends.

    llguidance would begin such a value, unless it finds a contradiction without following a reference.

    Returns:
      The schema; None if it has no such value itself.
    """
    if not isinstance(schema, Mapping):
        return None
    definitions = schema.get("$defs", {})
    endings = _Endings(definitions)
    result = endings.kept(schema)
    if not isinstance(result, dict):
        return None
    kept = {name: each for name, node in definitions.items() if (each := endings.kept(node)) is not False}
    return {**result, "$defs": kept} if kept else result


class _NoValueError(Exception):
    """No value that ends fits a schema."""


class _Endings:
    """Finds schemas that have a value that ends, and counts others as such if it is too much work to know."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._work = WorkLimit()
        self._ending: dict[int, Any] = {}  # schemas by `id()`, which remains theirs as long as they are kept

    def kept(self, node: Any) -> Any:
        """Returns a schema in which `false` replaces subschemas without a value that ends."""
        if isinstance(node, list):
            return [self.kept(each) for each in node]
        if not isinstance(node, dict):
            return node
        try:
            if not self._can_end(node, frozenset()):
                return False
        except (InexactError, RecursionError, AttributeError, TypeError):  # or malformed, which llguidance reports
            pass
        return {key: self._kept_keyword(key, value) for key, value in node.items() if key != "$defs"}

    def _kept_keyword(self, key: str, value: Any) -> Any:
        if key in _MAPS and isinstance(value, dict):
            return {name: self.kept(each) for name, each in value.items()}
        return self.kept(value) if key in _LISTS or key in _VALUES else value

    def _can_end(self, node: Any, around: frozenset[int]) -> bool:
        """Returns whether a schema has a value that ends and contains no value of a schema around it.

        Raises:
          InexactError: It is too much work to know.
        """
        self._work.spend()
        if not isinstance(node, dict):
            return node is not False
        if id(node) in around:
            return False
        if len(around) > _MAX_ENDING_DEPTH:
            raise InexactError
        if id(node) not in self._ending:
            if not self._one_can_end(node, (), around | {id(node)}):
                return False
            self._ending[id(node)] = node
        return True

    def _one_can_end(self, node: Any, outer: Sequence[Mapping[str, Any]], around: frozenset[int]) -> bool:
        """Returns whether a finite value fits a schema, several others, and a branch of every union of the schema."""
        try:
            new = list(self._parts(node, frozenset(), frozenset(map(id, outer))))
        except _NoValueError:
            return False
        parts = [*outer, *new]
        unions = (part[key] for part in new for key in UNIONS if key in part)
        return self._contents_can_end(parts, around) and all(
            any(self._one_can_end(branch, parts, around) for branch in union) for union in unions
        )

    def _parts(self, node: Any, above: frozenset[int], known: frozenset[int]) -> Iterator[Mapping[str, Any]]:
        """Yields the schemas that a value must all fit, except known ones.

        Raises:
          _NoValueError: No value fits them, or one includes itself.
        """
        self._work.spend()
        if node is False or id(node) in above:
            raise _NoValueError
        if not isinstance(node, dict) or id(node) in known:
            return
        yield node
        above |= {id(node)}
        if isinstance(node.get("$ref"), str):
            yield from self._parts(self._definitions[node["$ref"].rpartition("/")[2]], above, known)
        for each in node.get("allOf", ()):
            yield from self._parts(each, above, known)

    def _contents_can_end(self, parts: Sequence[Mapping[str, Any]], around: frozenset[int]) -> bool:
        for part in parts:
            self._work.spend_values(len(own_values(part) or ()))
        types = ALL_TYPES.intersection(*map(own_types, parts))
        if types & _SCALARS or any({"const", "enum"} & part.keys() for part in parts):
            return bool(types)
        return ("object" in types and all(self._can_end(each, around) for each in _properties(parts))) or (
            "array" in types and all(self._can_end(each, around) for each in _entries(parts))
        )


def _properties(parts: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yields the schemas of properties that an object must have."""
    names = dict.fromkeys(name for part in parts for name in required(part))
    return (named(part, name) for name in names for part in parts)


def _entries(parts: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yields the schemas of entries that a list must have."""
    least = max(part.get("minItems", 0) for part in parts)
    for part in parts:
        items = part.get("items", True)
        first, others = (items, part.get("additionalItems", True)) if isinstance(items, list) else ([], items)
        yield from [*part.get("prefixItems", first), others][:least]
