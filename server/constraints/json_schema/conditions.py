"""Keywords that llguidance lacks, as unions of schemas that it enforces: `oneOf`, `not`, `if` and `dependencies`."""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from .complement import Complements, Schema, intersection, union
from .shapes import InexactError, Shapes, required

DEPENDENCIES: Final = ("dependencies", "dependentRequired", "dependentSchemas")

_MAX_DEPENDENCIES: Final = 6
"""Maximum number of dependencies of an object. Each doubles the alternatives."""


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
    """Returns a schema without some of its keywords."""
    return {key: value for key, value in node.items() if key not in keys}


def num_alternatives(schemas: Iterator[Schema]) -> int:
    """Returns the maximum number of alternatives that several schemas together have for a value."""
    product = 1
    for schema in schemas:
        if isinstance(schema, dict):
            product *= max(1, len(schema.get("anyOf", ())))
            product *= num_alternatives(each for each in schema.get("allOf", ()) if isinstance(each, dict))
    return product
