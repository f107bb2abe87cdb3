"""Schemas without a value that ends: contradictions, and objects and lists that each contain another of their kind."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .closing import UNIONS
from .shapes import ALL_TYPES, InexactError, Schema, WorkLimit, named, own_types, own_values, required

_MAX_DEPTH: Final = 32
"""Maximum depth to which the contents of values are examined."""

_MAPS: Final = ("properties", "patternProperties")
_LISTS: Final = ("allOf", *UNIONS, "prefixItems")
_VALUES: Final = ("items", "additionalItems", "additionalProperties")
_SCALARS: Final = ALL_TYPES - {"array", "object"}


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
        if len(around) > _MAX_DEPTH:
            raise InexactError
        if id(node) not in self._ending:
            if not self._one_can_end(node, (), around | {id(node)}):
                return False
            self._ending[id(node)] = node
        return True

    def _one_can_end(self, node: Any, outer: Sequence[Mapping[str, Any]], around: frozenset[int]) -> bool:
        """Returns whether a value may end that fits a schema and several others, and a branch of each of its unions."""
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
