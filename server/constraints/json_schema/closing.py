"""Objects that several subschemas describe together, which are closed as a whole."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .strings import few

UNIONS: Final = ("anyOf", "oneOf")
BRANCHES: Final = ("allOf", *UNIONS)
_NONE: Final[tuple[Any, ...]] = (False, {"not": {}}, {"not": True})
"""Schemas that no value fits."""

_DESCRIBING: Final = frozenset(
    {
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "minProperties",
        "oneOf",
        "patternProperties",
        "properties",
        "required",
        "then",
    }
)
"""Keywords that say which properties an object has."""

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
        """Property names of the closed object: those that a subschema names, then those that one only requires."""
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
    """Yields the lists of properties that a schema requires, always or beside another property."""
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
