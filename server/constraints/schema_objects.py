"""Properties of an object that several subschemas describe together, and patterns that only few names match."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_BRANCHES: Final = ("allOf", "anyOf", "oneOf")

_MAX_FEW: Final = 64
"""Maximum number of names that are few: all letters and digits are."""

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

_CLASS: Final = r"\[((?:\w-\w|\w)+)\](?:\{1\})?"
_FEW: Final = re.compile(rf"\^([\w:/-]*)(?:\((?:\?:)?(?:([\w:/|-]*)|{_CLASS})\)|{_CLASS})?([\w:/-]*)\$", re.ASCII)
"""A pattern of few names: a group of alternatives or a class, between characters."""

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

    def collect(self, node: Any, resolve: Resolve, seen: set[str]) -> None:
        """Adds the properties that a schema and its branches declare for the object.

        Args:
          seen: References that were followed.
        """
        if not isinstance(node, dict):
            return
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
            self.collect(resolve(pointer), resolve, seen)
        for branch in _branches(node):
            self.collect(branch, resolve, seen)
        condition = Cluster(self.names, self.patterns)  # which requires nothing
        condition.collect(node.get("if"), resolve, seen)


def _required_lists(node: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yields the lists of properties that a schema requires, always or together with another property."""
    rules = (node[key] for key in ("dependencies", "dependentRequired") if isinstance(node.get(key), dict))
    for names in (node.get("required"), *itertools.chain.from_iterable(rule.values() for rule in rules)):
        if isinstance(names, list):
            yield names


def _branches(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the subschemas that describe the same value."""
    for key in _BRANCHES:
        if isinstance(node.get(key), list):
            yield from node[key]
    for key in ("then", "else"):
        yield node.get(key)
    for key in ("dependentSchemas", "dependencies"):
        if isinstance(node.get(key), dict):
            yield from node[key].values()


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


def few(pattern: str) -> list[str] | None:
    """Returns the names that a pattern such as `^name:(en|nl)$` or `^line[1-3]$` matches; None for other patterns."""
    found = _FEW.fullmatch(pattern)
    if found is None:
        return None
    before, alternatives, grouped, single, after = found.groups("")
    middle = [*_members(grouped or single)] if grouped or single else alternatives.split("|")
    return [f"{before}{each}{after}" for each in middle] if 1 <= len(middle) <= _MAX_FEW else None


def _members(text: str) -> Iterator[str]:
    """Yields the characters of a class."""
    for first, last in re.findall(r"(\w)(?:-(\w))?", text):
        yield from map(chr, range(ord(first), ord(last or first) + 1))
