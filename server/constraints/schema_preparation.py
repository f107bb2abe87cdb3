"""Rewrites a JSON schema for llguidance: rewrites or drops keywords that it cannot enforce, and closes objects.

llguidance has no negation, so every enforced keyword narrows the language, and dropping one only widens it.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .grammar_spec import GrammarError
from .schema_bounds import bounded
from .schema_facts import ALL_TYPES, Facts, Schema, is_closed, required, without_endless
from .schema_objects import Cluster, few, is_plain_reference, is_plain_union
from .schema_references import References

_UNENFORCEABLE: Final = frozenset(
    {
        *("$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas"),
        *("else", "if", "maxContains", "minContains", "not", "oneOf", "propertyNames", "then", "unevaluatedItems"),
        *("unevaluatedProperties", "uniqueItems"),
    }
)

_ENFORCED: Final = frozenset(
    {
        *("$ref", "$schema", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum"),
        *("exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties"),
        *("maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern"),
        *("patternProperties", "prefixItems", "properties", "required", "type"),
    }
)
"""Keywords that llguidance reads. With any other keyword, even an annotation, it refuses circular references."""

_FORMATS: Final = (
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"),
)
"""Formats that llguidance enforces; JSON Schema treats any other format as an annotation."""

_UNENFORCEABLE_PATTERN: Final = re.compile(r"\(\?(?:[=!>#]|<[=!])|\\(?:[1-9]|k<|[bBchNRZ])")
"""Look-around, back references and similar, which an automaton cannot match."""

_WITHOUT_EFFECT: Final = (("propertyNames", {"type": "string"}), ("uniqueItems", False))
"""Keywords with values that allow everything."""

_ANNOTATIONS: Final = frozenset({"$comment", "description", "title"})

_DEPENDENCIES: Final = ("dependencies", "dependentRequired", "dependentSchemas")

_MAX_ALTERNATIVES: Final = 48
"""Maximum number of alternatives that the rewritten keywords of a schema together have for one value."""

_OF_VALUES: Final = ("items", "additionalItems", "additionalProperties")


class _InexactError(Exception):
    """A keyword cannot be rewritten so that exactly the same values fit."""


@dataclass(frozen=True, slots=True)
class PreparedSchema:
    """A schema for llguidance.

    Attributes:
      schema: The rewritten schema; None if no value fits it.
      dropped: Keywords that cannot be enforced, each once.
      widened: Bounds that are enforced in a wider form, each once.
    """

    schema: Mapping[str, Any] | None
    dropped: tuple[str, ...]
    widened: tuple[str, ...] = ()


def prepare(schema: Mapping[str, Any]) -> PreparedSchema:
    """Returns a schema that llguidance can enforce.

    Objects with `properties` but without `additionalProperties` do not allow others, since models would add ever more.
    An object described by several subschemas (`allOf`) is closed as a whole. Required properties that it does not
    declare are allowed, with any value.

    Raises:
      GrammarError: A `$ref` has no target, or the schema is nested too deeply.
    """
    try:
        return _Preparation(schema).prepared()
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None


class _Preparation:
    """Rewrites one schema.

    Referenced definitions are rewritten up to twice: closed, and open for use as a part of a larger object.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._dropped: dict[str, None] = {}
        self._widened: dict[str, None] = {}
        self._root = root
        self._references = References(root)
        self._resource = root
        self._names: dict[tuple[int, str, bool], str] = {}
        self._pending: list[tuple[str, Any, Mapping[str, Any], bool]] = []
        self._one_ofs: list[tuple[Schema, Sequence[Schema]]] = []

    def prepared(self) -> PreparedSchema:
        """Returns the rewritten schema with its definitions."""
        whole = self._schema(self._root, close=True)
        definitions: dict[str, Any] = {}
        while self._pending:  # a definition may refer to others
            name, node, self._resource, close = self._pending.pop()
            definitions[name] = self._schema(node, close=close)
        whole, definitions = without_endless(whole, definitions)
        facts = Facts(definitions)
        for rest, branches in self._one_ofs:
            pairs = itertools.combinations(branches, 2)
            if not all(facts.are_disjoint({"allOf": [rest, one]}, other) for one, other in pairs):
                self._dropped["oneOf"] = None
                break
        result = ({**whole, "$defs": definitions} if definitions else whole) if isinstance(whole, dict) else None
        return PreparedSchema(result, tuple(self._dropped), tuple(self._widened))

    def _schema(self, node: Any, *, close: bool) -> Any:
        if not isinstance(node, dict):
            return node
        if node.get("not", False) in ({}, True):
            return False
        outer, self._resource = self._resource, self._references.resource(node, self._resource)
        bounds = bounded(node)
        node, self._widened = bounds.node, self._widened | dict.fromkeys(bounds.widened)
        if "oneOf" in node and "anyOf" in node:
            node = {**_without(node, "oneOf"), "allOf": [*node.get("allOf", ()), {"oneOf": node["oneOf"]}]}
        result = self._rewritten(self._with_names(node), close=close)
        self._resource = outer
        return result

    def _rewritten(self, node: Mapping[str, Any], *, close: bool) -> dict[str, Any]:
        branches_close = close and is_plain_union(node)
        unions = self._unions(node, close=close)
        inner: dict[str, Any] = {}
        for key, value in node.items():
            if key not in unions and not (key == "type" and self._has_implied_type(node)):
                inner |= self._keyword(node, key, value, close=close, branches_close=branches_close)
        result = inner
        if added := [self._schema(union, close=False) for union in unions.values() if union != {}]:
            outer = {key: inner.pop(key) for key in ("$schema",) if key in inner}  # which belongs to a whole schema
            result = {**outer, "allOf": [inner, *added]}
        if close and not branches_close:
            self._close(node, result)
        if isinstance(node.get("oneOf"), list) and _exclusions(node) is None:
            rest = {"allOf": [_without(inner, "anyOf"), _without(result, "allOf")]}
            self._one_ofs.append((rest, inner["anyOf"]))
        return result

    def _unions(self, node: Mapping[str, Any], *, close: bool) -> dict[str, Schema]:
        """Returns schemas of keywords that llguidance has, which replace others."""
        unions: dict[str, Schema] = {}
        for key in node:
            try:
                union = self._union(node, key, close=close)
                num = math.prod(map(_num_alternatives, (union, *unions.values())))
            except (_InexactError, AttributeError, TypeError):  # or malformed, which is dropped
                continue
            if num <= _MAX_ALTERNATIVES:
                unions[key] = union
        return unions

    def _union(self, node: Mapping[str, Any], key: str, *, close: bool) -> Schema:
        """Returns the schema that replaces a keyword; raises `_InexactError` if none does so exactly."""
        if key == "not":
            return _complement(node["not"])
        if key in _DEPENDENCIES:
            return {"allOf": [_dependency(name, rule) for name, rule in node[key].items()]}
        if key == "minProperties":
            return self._counted(node, close=close)
        raise _InexactError

    def _counted(self, node: Mapping[str, Any], *, close: bool) -> Schema:
        """Returns a union for `minProperties` of a closed object, by some optional properties that are present."""
        names, is_whole = self._declared(node, close=close)
        if not is_whole:
            raise _InexactError
        optional = [name for name in names if name not in required(node)]
        least = node["minProperties"] - len(required(node))
        if least <= 0:
            return {}
        if not 0 < math.comb(len(optional), least) <= _MAX_ALTERNATIVES:
            raise _InexactError
        return {"anyOf": [{"required": [*some]} for some in itertools.combinations(optional, least)]}

    def _declared(self, node: Mapping[str, Any], *, close: bool) -> tuple[list[str], bool]:
        """Returns the properties that the rewritten object declares, and whether these are all that it may have."""
        cluster = self._cluster(node) if close else Cluster()
        if cluster.can_close:
            return cluster.allowed, not cluster.patterns
        properties = node.get("properties")
        return [*properties] if isinstance(properties, dict) else [], is_closed(node)

    def _one_of(self, node: Mapping[str, Any], *, close: bool) -> list[Schema]:
        """Returns the branches of the `anyOf` that replaces a `oneOf`; they exclude each other if that is possible."""
        prepared: list[Schema] = [self._schema(branch, close=close) for branch in node["oneOf"]]
        if (exclusions := _exclusions(node)) is None:
            return prepared
        others = ([self._schema(each, close=False) for each in some] for some in exclusions)
        return [{"allOf": [branch, *some]} for branch, some in zip(prepared, others, strict=True)]

    def _keyword(
        self, node: Mapping[str, Any], key: str, value: Any, *, close: bool, branches_close: bool
    ) -> dict[str, Any]:
        """Returns the rewritten entry of a keyword; empty if it is dropped."""
        if key == "$ref" and isinstance(value, str):
            return {key: self._reference(value, close=close and is_plain_reference(node))}
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            return {key: {name: self._schema(each, close=True) for name, each in value.items()}}
        if key in _OF_VALUES and not isinstance(value, list):
            return {key: self._schema(value, close=True)}
        if key in ("items", "prefixItems") and isinstance(value, list):
            return {key: [self._schema(each, close=True) for each in value]}
        if key in ("allOf", "anyOf") and isinstance(value, list):
            return {key: [self._schema(each, close=branches_close) for each in value]}
        if key == "oneOf" and isinstance(value, list):
            return {"anyOf": self._one_of(node, close=branches_close)}
        if (key, value) in _WITHOUT_EFFECT or (key == "format" and value not in _FORMATS):
            return {}
        if self._is_dropped(node, key, value, close=close):
            self._dropped[key] = None
            return {}
        return {key: value} if key in _ENFORCED else {}

    def _is_dropped(self, node: Mapping[str, Any], key: str, value: Any, *, close: bool) -> bool:
        if key == "pattern":
            return isinstance(value, str) and _UNENFORCEABLE_PATTERN.search(value) is not None
        if key in ("minProperties", "maxProperties"):
            return not {*self._declared(node, close=close)[0]} <= {*required(node)}
        return key in _UNENFORCEABLE

    def _has_implied_type(self, node: Mapping[str, Any]) -> bool:
        """Returns whether the type of a schema follows from its reference or union, beside which llguidance refuses it
        in circular references.
        """
        branches = [{"$ref": node["$ref"]}] if "$ref" in node else node.get("anyOf")
        targets = [self._followed(each) for each in branches] if isinstance(branches, list) else []
        return bool(targets) and all(set() < _type_names(target) <= _type_names(node) for target in targets)

    def _followed(self, node: Any) -> Any:
        """Returns the target of a reference, or the schema itself."""
        is_reference = isinstance(node, dict) and isinstance(node.get("$ref"), str)
        return self._target(node["$ref"]) if is_reference else node

    def _reference(self, pointer: str, *, close: bool) -> str:
        """Returns the reference to a definition in the rewritten schema."""
        node, resource = self._references.target(pointer, self._resource)
        key = id(resource), pointer, close
        if key not in self._names:
            self._names[key] = f"d{len(self._names)}"
            self._pending.append((self._names[key], node, resource, close))
        return f"#/$defs/{self._names[key]}"

    def _with_names(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a schema whose `propertyNames` and patterns of few names became properties.

        After the last of a pattern's names, llguidance would offer another property, and find no name for it.
        """
        properties, patterns = node.get("properties", {}), node.get("patternProperties", {})
        allowed = _allowed_names(self._followed(node.get("propertyNames")))
        if allowed and not properties and not patterns:
            properties = self._with_few({}, allowed, node.get("additionalProperties", True))
            node = {**_without(node, "propertyNames"), "additionalProperties": False, "properties": properties}
        if not isinstance(patterns, dict) or not isinstance(properties, dict):
            return node
        found = {pattern: names for pattern in patterns if (names := few(pattern)) is not None}
        for pattern, names in found.items():
            properties = self._with_few(properties, names, patterns[pattern])
        node = {**node, "properties": properties} if found else node
        others = _without(patterns, *found)
        return {**node, "patternProperties": others} if others else _without(node, "patternProperties")

    def _with_few(self, properties: Mapping[str, Any], names: Sequence[str], value: Any) -> dict[str, Any]:
        """Returns `properties` with further names that share one schema."""
        if isinstance(value, dict) and len(names) > 1 and not is_plain_reference(value):
            value = {"$ref": self._references.add(value, self._resource)}
        both = {name: {"allOf": [properties[name], value]} for name in names if name in properties}
        return {**properties, **dict.fromkeys(names, value), **both}

    def _close(self, node: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Allows only the properties that the object's subschemas name or require together."""
        cluster = self._cluster(node)
        if is_plain_reference(node) or not cluster.can_close:
            return
        own, own_patterns = (result.get(key, {}) for key in ("properties", "patternProperties"))
        if not isinstance(own, dict) or not isinstance(own_patterns, dict):
            return  # llguidance reports it
        others = {name: True for name in cluster.allowed if name not in own}
        result["properties"] = {**own, **others}
        if patterns := {pattern: True for pattern in cluster.patterns if pattern not in own_patterns}:
            result["patternProperties"] = {**own_patterns, **patterns}
        result["additionalProperties"] = False

    def _cluster(self, node: Mapping[str, Any]) -> Cluster:
        cluster = Cluster()
        cluster.collect(node, self._target, set())
        cluster.is_open |= "additionalProperties" in node  # which may close it to names of other subschemas
        return cluster

    def _target(self, pointer: str) -> Any:
        return self._references.target(pointer, self._resource)[0]


def _exclusions(node: Mapping[str, Any]) -> list[list[Schema]] | None:
    """Returns for each branch of a `oneOf` the complements of the others.

    Returns:
      The complements; None if they cannot be expressed, or if the schema requires the properties of several branches,
      so that no object would fit.
    """
    branches = node["oneOf"]
    if sum({*required(each)} <= {*required(node)} for each in branches if isinstance(each, dict)) > 1:
        return None
    try:
        complements = [_complement(branch) for branch in branches]
    except _InexactError:
        return None
    if len(complements) > _MAX_ALTERNATIVES or math.prod(map(_num_alternatives, complements)) > _MAX_ALTERNATIVES:
        return None
    return [[*complements[:index], *complements[index + 1 :]] for index in range(len(complements))]


def _complement(node: Any) -> Schema:
    """Returns a schema of exactly the values that don't fit a schema of required properties.

    Raises:
      _InexactError: The schema has other keywords.
    """
    if isinstance(node, bool) or node == {}:
        return node is False
    if not isinstance(node, dict):
        raise _InexactError
    parts: list[Schema] = []
    for key, value in node.items():
        match key, value:
            case "required", list():
                parts += [{"type": "object", "properties": {name: False}} for name in required(node)]
            case "type", "object":
                parts.append({"type": sorted(ALL_TYPES - {"object", "integer"})})
            case "allOf", list():
                parts += map(_complement, value)
            case "anyOf", list():
                parts.append({"allOf": [_complement(each) for each in value]})
            case _ if key not in _ANNOTATIONS:
                raise _InexactError
    return {"anyOf": parts} if parts else False


def _allowed_names(rule: Any) -> Sequence[str] | None:
    """Returns the names that `propertyNames` lists; None for other rules."""
    match [*_without(rule, "type", *_ANNOTATIONS).items()] if isinstance(rule, dict) else []:
        case [("enum", [*names])] if all(isinstance(name, str) for name in names):
            return names
        case [("const", str(name))]:
            return [name]
        case _:
            return None


def _type_names(node: Any) -> set[str]:
    """Returns the types that the `type` of a schema names; none without it."""
    named = node.get("type", []) if isinstance(node, dict) else []
    return {each for each in ([named] if isinstance(named, str) else named) if isinstance(each, str)}


def _dependency(name: str, rule: Any) -> Schema:
    """Returns a union of objects without a property, and objects for which the rule of the property holds."""
    if isinstance(rule, str):
        rule = [rule]  # draft 3
    needed: Schema = {"required": rule} if isinstance(rule, list) else rule
    return {"anyOf": [{"properties": {name: False}}, {"type": "object", "required": [name], "allOf": [needed]}]}


def _num_alternatives(schema: Schema) -> int:
    """Returns the number of alternatives that a schema has for a value."""
    if not isinstance(schema, dict):
        return 1
    num = sum(map(_num_alternatives, schema.get("anyOf", ())))
    return max(1, num) * math.prod(map(_num_alternatives, schema.get("allOf", ())))


def _without(node: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Returns a schema without the given keywords."""
    return {key: value for key, value in node.items() if key not in keys}
