"""Rewrites a JSON schema for llguidance: drops keywords that it cannot enforce, and closes objects.

llguidance has no negation, so every enforced keyword narrows the language, and dropping one only widens it.
"""

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .spec import GrammarError

_UNENFORCEABLE: Final = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)

_FORMATS: Final = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"}
)
"""Formats that llguidance enforces; JSON Schema treats any other format as an annotation."""

_UNENFORCEABLE_PATTERN: Final = re.compile(r"\(\?(?:[=!>#]|<[=!])|\\(?:[1-9]|k<|[bBchNRZ])")
"""Look-around, back references and similar, which an automaton cannot match."""

_DEFINITIONS: Final = ("$defs", "definitions")
_OF_VALUES: Final = ("items", "additionalItems", "additionalProperties")
_UNIONS: Final = ("anyOf", "oneOf")
_BRANCHES: Final = ("allOf", *_UNIONS)
_ANNOTATIONS: Final = frozenset({"$comment", "default", "deprecated", "description", "examples", "title", "type"})

_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class PreparedSchema:
    """A schema for llguidance.

    Attributes:
      schema: The rewritten schema.
      dropped: Keywords that llguidance cannot enforce, each once.
    """

    schema: Mapping[str, Any]
    dropped: tuple[str, ...]


def prepare(schema: Mapping[str, Any], *, close_objects: bool) -> PreparedSchema:
    """Returns a schema that llguidance can enforce.

    Args:
      schema: JSON schema.
      close_objects: Whether objects with `properties` but without `additionalProperties` allow no others, like the
        strict mode of other servers. An object described by several subschemas (`allOf`) is closed as a whole.

    Raises:
      GrammarError: A `$ref` has no target, or the schema is nested too deeply.
    """
    try:
        preparation = _Preparation(schema, close_objects=close_objects and _has_local_references(schema))
        prepared = preparation.whole()
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None
    return PreparedSchema(prepared, tuple(preparation.dropped))


@dataclass(slots=True)
class _Cluster:
    """Properties of an object that several subschemas describe together.

    Attributes:
      names: Property names of all subschemas, in order.
      patterns: Property patterns of all subschemas, in order.
      is_open: Whether a subschema defines additional properties itself.
    """

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    is_open: bool = False


class _Preparation:
    """Rewrites one schema.

    Referenced definitions are rewritten up to twice: closed, and open for use as a part of a larger object.

    Attributes:
      dropped: Dropped keywords in order of appearance.
    """

    def __init__(self, root: Mapping[str, Any], *, close_objects: bool) -> None:
        self.dropped: dict[str, None] = {}
        self._root = root
        self._closes = close_objects
        self._moves_definitions = _has_local_references(root)
        self._names: dict[tuple[str, bool], str] = {}
        self._pending: list[tuple[str, bool]] = []

    def whole(self) -> dict[str, Any]:
        """Returns the rewritten schema with its definitions."""
        result = self._schema(self._root, close=self._closes)
        if not isinstance(result, dict):
            raise GrammarError("no text can satisfy it")
        definitions: dict[str, Any] = {}
        while self._pending:  # a definition may refer to others
            pointer, close = self._pending.pop()
            definitions[self._names[pointer, close]] = self._schema(self._target(pointer), close=close)
        return {**result, "$defs": definitions} if definitions else result

    def _schema(self, node: Any, *, close: bool) -> Any:
        if not isinstance(node, dict):
            return node
        if node.get("not", _MISSING) in ({}, True):
            return False
        branches_close = close and _is_plain_union(node)
        result: dict[str, Any] = {}
        for key, value in node.items():
            result |= self._keyword(node, key, value, close=close, branches_close=branches_close)
        result |= self._named_properties(node)
        if close and not branches_close:
            self._close(node, result)
        return result

    def _keyword(
        self, node: Mapping[str, Any], key: str, value: Any, *, close: bool, branches_close: bool
    ) -> dict[str, Any]:
        """Returns the rewritten entry of a keyword; empty if it is dropped."""
        if key in _DEFINITIONS and isinstance(value, dict):
            kept = {} if self._moves_definitions else {name: self._value(each) for name, each in value.items()}
            return {key: kept} if kept else {}
        if key == "$ref" and isinstance(value, str) and self._moves_definitions:
            return {key: self._reference(value, close=close and _is_plain_reference(node))}
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            return {key: {name: self._value(each) for name, each in value.items()}}
        if key in _OF_VALUES and not isinstance(value, list):
            return {key: self._value(value)}
        if key in ("items", "prefixItems") and isinstance(value, list):
            return {key: [self._value(each) for each in value]}
        if key in _BRANCHES and isinstance(value, list):
            return {key: [self._schema(each, close=branches_close) for each in value]}
        if key == "format" and value not in _FORMATS:
            return {}
        if self._is_dropped(node, key, value):
            if not (key == "propertyNames" and self._names_of_properties(node) is not None):
                self.dropped[key] = None
            return {}
        return {key: value}

    def _value(self, node: Any) -> Any:
        """Rewrites the schema of a separate value, whose objects are closed by themselves."""
        return self._schema(node, close=self._closes)

    def _is_dropped(self, node: Mapping[str, Any], key: str, value: Any) -> bool:
        if key == "pattern":
            return isinstance(value, str) and _UNENFORCEABLE_PATTERN.search(value) is not None
        if key in ("minProperties", "maxProperties"):
            required = node.get("required")
            return not set(node.get("properties", ())) <= set(required if isinstance(required, list) else ())
        return key in _UNENFORCEABLE

    def _reference(self, pointer: str, *, close: bool) -> str:
        """Returns the reference to a definition in the rewritten schema."""
        if (pointer, close) not in self._names:
            self._names[pointer, close] = f"d{len(self._names)}"
            self._pending.append((pointer, close))
        return f"#/$defs/{self._names[pointer, close]}"

    def _target(self, pointer: str) -> Any:
        node: Any = self._root
        for step in pointer.split("/")[1:]:
            name = urllib.parse.unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                raise GrammarError(f"$ref {pointer[:60]!r} has no target in the schema")
        if not isinstance(node, dict | bool):
            raise GrammarError(f"$ref {pointer[:60]!r} does not lead to a schema")
        return node

    def _named_properties(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `propertyNames` with names or a pattern as keywords that llguidance enforces; empty otherwise."""
        rule = self._names_of_properties(node)
        if rule is None or "properties" in node or "patternProperties" in node:
            return {}
        value = self._value(node.get("additionalProperties", True))
        if isinstance(rule, str):
            return {"patternProperties": {rule: value}, "additionalProperties": False}
        return {"properties": dict.fromkeys(rule, value), "additionalProperties": False}

    def _names_of_properties(self, node: Mapping[str, Any]) -> list[str] | str | None:
        """Returns the allowed property names or their pattern; None if there is no limit or it cannot be expressed."""
        rule = node.get("propertyNames")
        if isinstance(rule, dict) and isinstance(rule.get("$ref"), str) and self._moves_definitions:
            rule = self._target(rule["$ref"])
        match rule if isinstance(rule, dict) and not {"properties", "patternProperties"} & node.keys() else None:
            case {"enum": [*names]} if names and all(isinstance(name, str) for name in names):
                return names
            case {"const": str(name)}:
                return [name]
            case {"pattern": str(pattern)} if not _UNENFORCEABLE_PATTERN.search(pattern):
                return pattern
            case _:
                return None

    def _close(self, node: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Allows only the properties that the object's subschemas name together."""
        cluster = _Cluster()
        self._collect(node, cluster, set())
        if cluster.is_open or not (cluster.names or "properties" in node) or _is_plain_reference(node):
            return
        own = result.get("properties", {})
        others = {name: True for name in cluster.names if name not in own}
        result["properties"] = {**own, **others}
        patterns = {pattern: True for pattern in cluster.patterns if pattern not in result.get("patternProperties", {})}
        if patterns:
            result["patternProperties"] = {**result.get("patternProperties", {}), **patterns}
        result["additionalProperties"] = False

    def _collect(self, node: Any, cluster: _Cluster, seen: set[str]) -> None:
        if not isinstance(node, dict):
            return
        cluster.is_open |= bool({"additionalProperties", "unevaluatedProperties", "propertyNames"} & node.keys())
        for key, names in (("properties", cluster.names), ("patternProperties", cluster.patterns)):
            if isinstance(node.get(key), dict):
                names |= dict.fromkeys(node[key])
        pointer = node.get("$ref")
        if isinstance(pointer, str) and pointer not in seen:
            seen.add(pointer)
            self._collect(self._target(pointer), cluster, seen)
        for branch in _branches(node):
            self._collect(branch, cluster, seen)


def _branches(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the subschemas that describe the same value."""
    for key in _BRANCHES:
        if isinstance(node.get(key), list):
            yield from node[key]
    for key in ("if", "then", "else"):
        yield node.get(key)
    if isinstance(node.get("dependentSchemas"), dict):
        yield from node["dependentSchemas"].values()


def _is_plain_union(node: Mapping[str, Any]) -> bool:
    """Returns whether a schema is only a union, so that each branch is an object of its own."""
    unions = [key for key in _UNIONS if key in node]
    return len(unions) == 1 and node.keys() - {*unions, *_DEFINITIONS, "discriminator"} <= _ANNOTATIONS


def _is_plain_reference(node: Mapping[str, Any]) -> bool:
    return "$ref" in node and node.keys() - {"$ref", *_DEFINITIONS} <= _ANNOTATIONS


def _has_local_references(schema: Any) -> bool:
    """Returns whether all references are paths within the schema."""
    if isinstance(schema, list):
        return all(map(_has_local_references, schema))
    if not isinstance(schema, dict):
        return True
    pointer = schema.get("$ref", "#")
    is_local = not isinstance(pointer, str) or pointer == "#" or pointer.startswith("#/")
    return is_local and all(map(_has_local_references, schema.values()))
