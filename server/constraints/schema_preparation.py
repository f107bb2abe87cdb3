"""Rewrites a JSON schema for llguidance: rewrites or drops keywords that it cannot enforce, and closes objects.

llguidance has no negation, so every enforced keyword narrows the language, and dropping one only widens it.
"""

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

from .grammar_spec import GrammarError
from .schema_shapes import (
    BRANCHES,
    Cluster,
    InexactError,
    Shapes,
    WorkLimit,
    is_plain_reference,
    is_plain_union,
    required,
    without_endless,
)
from .schema_strings import few
from .schema_unions import (
    DEPENDENCIES,
    Complements,
    Conditions,
    Schema,
    contains,
    num_alternatives,
    num_properties,
    unique_items,
    without,
)

_UNENFORCEABLE: Final = frozenset(
    {
        *("$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas"),
        *("else", "if", "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems"),
        *("unevaluatedProperties", "uniqueItems"),
    }
)

_ENFORCED: Final = frozenset(
    {
        *("$ref", "$schema", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "enum"),
        *("exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maxProperties"),
        *("maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "oneOf", "pattern"),
        *("patternProperties", "prefixItems", "properties", "required", "type"),
    }
)
"""Keywords that llguidance reads. With any other keyword, even an annotation, it refuses circular references."""

_FORMATS: Final = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"}
)
"""Formats that llguidance enforces; JSON Schema treats any other format as an annotation."""

_UNENFORCEABLE_PATTERN: Final = re.compile(r"\(\?(?:[=!>#]|<[=!])|\\(?:[1-9]|k<|[bBchNRZ])")
"""Look-around, back references and similar, which an automaton cannot match."""

_INEXACT: Final = _UNENFORCEABLE | {"maxProperties", "minProperties", "oneOf"}
"""Keywords that llguidance may enforce only in part."""

_MAX_ALTERNATIVES: Final = 128
"""Maximum number of alternatives that all rewritten keywords of a schema together may have for one value."""

_COUNTS: Final = ("minProperties", "maxProperties")

_OF_VALUES: Final = ("items", "additionalItems", "additionalProperties")

_OLD_DRAFTS: Final = ("draft-03", "draft-04")
"""Drafts whose keyword for a schema's URI is `id`."""

_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class PreparedSchema:
    """A schema for llguidance.

    Attributes:
      schema: The rewritten schema; None if no value fits it.
      dropped: Keywords that llguidance cannot enforce, each once.
      rewritten: Keywords that became unions, which llguidance may find too large, each once.
    """

    schema: Mapping[str, Any] | None
    dropped: tuple[str, ...]
    rewritten: tuple[str, ...] = ()


def prepare(schema: Mapping[str, Any], *, rewrites: bool = True) -> PreparedSchema:
    """Returns a schema that llguidance can enforce.

    Objects with `properties` but without `additionalProperties` do not allow others, since models would add ever more.
    An object described by several subschemas (`allOf`) is closed as a whole. Required properties that it does not
    declare are allowed, with any value.

    Args:
      schema: JSON schema.
      rewrites: Whether keywords that llguidance lacks become unions if that is exact. Otherwise they are dropped.

    Raises:
      GrammarError: A `$ref` has no target, or the schema is nested too deeply.
    """
    try:
        preparation = _Preparation(schema, rewrites=rewrites)
        prepared = without_endless(preparation.whole())
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None
    return PreparedSchema(prepared, tuple(preparation.dropped), tuple(preparation.rewritten))


class References:
    """References of one schema, each relative to the resource that contains it.

    A resource is the whole schema, or a subschema with a URI. Generators also give URIs to subschemas whose references
    are relative to the whole schema, which is tried second.

    Args:
      root: The whole schema.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        is_old = str(root.get("$schema")).partition("//json-schema.org/")[2].startswith(_OLD_DRAFTS)
        self._identifier = "id" if is_old else "$id"
        self._added: dict[str, tuple[Any, Mapping[str, Any]]] = {}

    def resource(self, node: Mapping[str, Any], outer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the resource of a subschema, given the resource of the schema around it."""
        uri = node.get(self._identifier)
        return node if isinstance(uri, str) and not uri.startswith("#") else outer

    def add(self, node: Any, resource: Mapping[str, Any]) -> str:
        """Returns a new reference to a subschema of a resource. No schema has such a reference itself."""
        pointer = f"#added/{len(self._added)}"
        self._added[pointer] = node, resource
        return pointer

    def target(self, pointer: str, resource: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Returns the subschema that a reference such as `#/$defs/a` points to, and the resource in which it was found.

        Raises:
          GrammarError: The reference has no target.
        """
        if pointer in self._added:
            return self._added[pointer]
        if pointer == "#" or pointer.startswith("#/"):
            node = _follow(resource, pointer)
            if node is _MISSING:
                resource, node = self._root, _follow(self._root, pointer)
        else:
            node, resource = self._identified(pointer, resource)
        if node is _MISSING:
            raise GrammarError(f"$ref {pointer[:60]!r} has no target in the schema")
        if not isinstance(node, dict | bool):
            raise GrammarError(f"$ref {pointer[:60]!r} does not lead to a schema")
        return node, resource

    def _identified(self, pointer: str, resource: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Returns the subschema that a reference names by an anchor or a URI, and its resource."""
        bases, named = self._names
        uri, _, fragment = pointer.partition("#")
        uri = _joined(bases.get(id(resource), ""), uri)
        if fragment.startswith("/"):
            found, _ = named.get(uri, (_MISSING, resource))
            return (found, resource) if found is _MISSING else (_follow(found, fragment), found)
        return named.get(f"{uri}#{fragment}" if fragment else uri, (_MISSING, resource))

    @cached_property
    def _names(self) -> tuple[dict[int, str], dict[str, tuple[Any, Mapping[str, Any]]]]:
        """URIs of resources by `id()`, and the subschemas that have a URI or an anchor, each with its resource."""
        bases = {id(self._root): ""}
        named: dict[str, tuple[Any, Mapping[str, Any]]] = {"": (self._root, self._root)}

        def collect(node: Any, outer: Mapping[str, Any]) -> None:
            for each in node if isinstance(node, list) else ():
                collect(each, outer)
            if not isinstance(node, dict):
                return
            resource, uri = self.resource(node, outer), str(node.get(self._identifier, ""))
            if resource is node:
                bases[id(node)] = _joined(bases[id(outer)], uri.partition("#")[0])
                named.setdefault(bases[id(node)], (node, node))
            for anchor in (uri.partition("#")[2], node.get("$anchor"), node.get("$dynamicAnchor")):
                if isinstance(anchor, str) and anchor:
                    named.setdefault(f"{bases[id(resource)]}#{anchor}", (node, resource))
            for each in node.values():
                collect(each, resource)

        collect(self._root, self._root)
        return bases, named


class _Preparation:
    """Rewrites one schema.

    Referenced definitions are rewritten up to twice: closed, and open for use as a part of a larger object.

    Attributes:
      dropped: Dropped keywords in order of appearance.
      rewritten: Keywords that became unions, in order of appearance.
    """

    def __init__(self, root: Mapping[str, Any], *, rewrites: bool) -> None:
        self.dropped: dict[str, None] = {}
        self.rewritten: dict[str, None] = {}
        self._root = root
        self._closes = True
        self._references = References(root)
        self._resource = root
        self._names: dict[tuple[int, str, bool, bool], str] = {}
        self._pending: list[tuple[str, Any, Mapping[str, Any], bool, bool]] = []
        self._rewrites = rewrites
        self._work = WorkLimit()
        self._shapes = Shapes(self._target, self._work)
        complements = Complements(self._shapes, self._target, self.exactly, self._work)
        self._conditions = Conditions(self, self._shapes, complements)

    def whole(self) -> Schema:
        """Returns the rewritten schema with its definitions."""
        result = self._schema(self._root, close=self._closes)
        if not isinstance(result, dict):
            return False
        definitions: dict[str, Any] = {}
        while self._pending:  # a definition may refer to others
            name, node, self._resource, close, self._closes = self._pending.pop()
            definitions[name] = self._schema(node, close=close)
        return {**result, "$defs": definitions} if definitions else result

    def _schema(self, node: Any, *, close: bool) -> Any:
        if not isinstance(node, dict):
            return node
        if node.get("not", _MISSING) in ({}, True):
            return False
        outer, self._resource = self._resource, self._references.resource(node, self._resource)
        result = self._rewritten(self._with_names(node), close=close)
        self._resource = outer
        return result

    def _rewritten(self, node: Mapping[str, Any], *, close: bool) -> dict[str, Any]:
        branches_close = close and is_plain_union(node)
        unions = self._unions(node, close=close, branches_close=branches_close) if self._rewrites else {}
        result: dict[str, Any] = {}
        for key, value in node.items():
            if key == "type" and self._has_implied_type(node):
                continue
            if key not in unions:
                result |= self._keyword(node, key, value, close=close, branches_close=branches_close)
            elif key == "oneOf" and "allOf" not in node:  # keeps its place, which decides the order of properties
                result["allOf"] = [unions.pop(key)]
        if added := [each for each in unions.values() if each is not True]:
            outer = {key: result.pop(key) for key in ("$schema",) if key in result}  # which belongs to a whole schema
            result = {**outer, "allOf": [result, *added]}
        if close and not branches_close:
            self._close(node, result)
        return result

    def _has_implied_type(self, node: Mapping[str, Any]) -> bool:
        try:
            return self._shapes.implies_type(node)
        except (InexactError, AttributeError, TypeError):  # or malformed, which llguidance reports
            return False

    def _unions(self, node: Mapping[str, Any], *, close: bool, branches_close: bool) -> dict[str, Schema]:
        """Returns the unions that replace keywords; True for a keyword that has no effect."""
        unions: dict[str, Schema] = {}
        for keys, make in self._rules(node, close=close, branches_close=branches_close):
            dropped = {**self.dropped}
            try:
                made = make()
                num = num_alternatives(iter((*unions.values(), made)))
            except (InexactError, AttributeError, TypeError, ValueError):  # or malformed, which llguidance reports
                self.dropped = dropped
                continue
            if num > _MAX_ALTERNATIVES and keys != ("oneOf",):
                continue
            first, *others = keys
            unions |= {first: made, **dict.fromkeys(others, True)}
            self.rewritten |= dict.fromkeys(keys if made is not True else ())
        return unions

    def _rules(
        self, node: Mapping[str, Any], *, close: bool, branches_close: bool
    ) -> Iterator[tuple[tuple[str, ...], Callable[[], Schema]]]:
        """Yields the keywords of a schema that may become unions, each with the function that builds the union."""
        rules, names = self._conditions, ("if", "then", "else")
        if isinstance(node.get("oneOf"), list):
            yield ("oneOf",), lambda: rules.one_of(node, close=close, branches_close=branches_close)
        if "not" in node:
            yield ("not",), lambda: rules.not_(node)
        if "if" in node:
            yield tuple(name for name in names if name in node), lambda: rules.if_(node)
        for key in DEPENDENCIES:
            if key in node:
                yield (key,), partial(rules.dependencies, node, key)
        if counts := tuple(key for key in _COUNTS if key in node):
            yield counts, lambda: self._counted(node, close=close)
        if "contains" in node:
            yield tuple(key for key in ("contains", "minContains") if key in node), lambda: contains(node, self.exactly)
        if "uniqueItems" in node:
            yield ("uniqueItems",), lambda: unique_items(node, self._shapes)

    def _counted(self, node: Mapping[str, Any], *, close: bool) -> Schema:
        """Returns the union for `minProperties` and `maxProperties`.

        Raises:
          InexactError: No union exists, or llguidance counts the properties itself, since none of them is optional.
        """
        cluster = self._cluster(node, self._work.spend)
        closes = close and cluster.can_close
        names = cluster.allowed if closes else [*cluster.names]
        if {*names} <= {*required(node)}:
            raise InexactError
        return num_properties(node, names, is_closed=closes or node.get("additionalProperties") is False)

    def branch(self, node: Any, *, close: bool = False) -> Schema:
        """Returns the rewritten form of a schema of the same value."""
        return self._schema(node, close=close)

    def exactly(self, node: Any) -> Schema:
        """Returns the rewritten form of a schema whose objects stay open.

        Raises:
          InexactError: A keyword would be dropped.
        """
        self._check_exact(node, set())
        closes, self._closes = self._closes, False
        result: Schema = self._schema(node, close=False)
        self._closes = closes
        return result

    def _check_exact(self, node: Any, seen: set[str]) -> None:
        self._work.spend()
        for value in node if isinstance(node, list) else ():
            self._check_exact(value, seen)
        for key, value in node.items() if isinstance(node, dict) else ():
            if key in _INEXACT or (key == "pattern" and _UNENFORCEABLE_PATTERN.search(str(value))):
                raise InexactError
            if key == "$ref" and isinstance(value, str) and value not in seen:
                seen.add(value)
                self._check_exact(self._target(value), seen)
            self._check_exact(value, seen)

    def closed(self, node: Mapping[str, Any]) -> Schema:
        """Returns a schema with the properties that an object has once it is closed; True if it stays open.

        Raises:
          InexactError: The object has too many subschemas.
        """
        cluster = self._cluster(node, self._work.spend)
        if not cluster.can_close or cluster.patterns or is_plain_reference(node) or is_plain_union(node):
            return True
        return {"properties": dict.fromkeys(cluster.allowed, True), "additionalProperties": False}

    def _keyword(
        self, node: Mapping[str, Any], key: str, value: Any, *, close: bool, branches_close: bool
    ) -> dict[str, Any]:
        """Returns the rewritten entry of a keyword; empty if it is dropped."""
        if key == "$ref" and isinstance(value, str):
            return {key: self._reference(value, close=close and is_plain_reference(node))}
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            return {key: {name: self._value(each) for name, each in value.items()}}
        if key in _OF_VALUES and not isinstance(value, list):
            return {key: self._value(value)}
        if key in ("items", "prefixItems") and isinstance(value, list):
            return {key: [self._value(each) for each in value]}
        if key in BRANCHES and isinstance(value, list):
            return {key: [self._schema(each, close=branches_close) for each in value]}
        if key == "format" and value not in _FORMATS:
            return {}
        if self._is_dropped(node, key, value):
            self.dropped[key] = None
            return {}
        return {key: value} if key in _ENFORCED else {}

    def _value(self, node: Any) -> Any:
        """Rewrites the schema of a separate value, whose objects are closed separately."""
        return self._schema(node, close=self._closes)

    def _is_dropped(self, node: Mapping[str, Any], key: str, value: Any) -> bool:
        if key == "pattern":
            return isinstance(value, str) and _UNENFORCEABLE_PATTERN.search(value) is not None
        if key in _COUNTS:
            properties = node.get("properties")
            return isinstance(properties, dict) and not properties.keys() <= {*required(node)}
        return key in _UNENFORCEABLE

    def _reference(self, pointer: str, *, close: bool) -> str:
        """Returns the reference to a definition in the rewritten schema."""
        node, resource = self._references.target(pointer, self._resource)
        key = id(resource), pointer, close, self._closes
        if key not in self._names:
            self._names[key] = f"d{len(self._names)}"
            self._pending.append((self._names[key], node, resource, close, self._closes))
        return f"#/$defs/{self._names[key]}"

    def _with_names(self, node: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns a schema whose `propertyNames` and patterns of few names became properties.

        After the last of a pattern's names, llguidance would offer another property, and find no name for it.
        """
        rule = self._names_of_properties(node)
        if rule is not None:
            self.rewritten["propertyNames"] = None
            value = node.get("additionalProperties", True)
            node = {**without(node, "propertyNames"), "additionalProperties": False}
            node |= {"patternProperties": {rule: value}} if isinstance(rule, str) else self._properties({}, rule, value)
        patterns, properties = node.get("patternProperties"), node.get("properties", {})
        if not (isinstance(patterns, dict) and isinstance(properties, dict)):
            return node
        found = {pattern: names for pattern in patterns if (names := few(pattern)) is not None}
        for pattern, names in found.items():
            node = {**node, **self._properties(node.get("properties", {}), names, patterns[pattern])}
        if others := without(patterns, *found):
            return {**node, "patternProperties": others}
        return without(node, "patternProperties")

    def _properties(self, properties: Mapping[str, Any], names: Sequence[str], value: Any) -> dict[str, Any]:
        """Returns `properties` with further names that share one schema."""
        if isinstance(value, dict) and len(names) > 1 and not is_plain_reference(value):
            value = {"$ref": self._references.add(value, self._resource)}
        both = {name: {"allOf": [properties[name], value]} for name in names if name in properties}
        return {"properties": {**properties, **dict.fromkeys(names, value), **both}}

    def _names_of_properties(self, node: Mapping[str, Any]) -> list[str] | str | None:
        """Returns the allowed property names or their pattern; None if all are allowed or the rule is unsupported."""
        rule = node.get("propertyNames") if self._rewrites else None
        if isinstance(rule, dict) and isinstance(rule.get("$ref"), str):
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

    def _cluster(self, node: Mapping[str, Any], spend: Callable[[], None] = lambda: None) -> Cluster:
        cluster = Cluster()
        cluster.collect(node, self._target, spend)
        cluster.is_open |= "additionalProperties" in node  # which may close it to names of other subschemas
        return cluster

    def _target(self, pointer: str) -> Any:
        return self._references.target(pointer, self._resource)[0]


def _joined(base: str, uri: str) -> str:
    """Returns a URI that may be relative to another."""
    try:
        return urllib.parse.urljoin(base, uri) if uri else base
    except ValueError:  # an address that is none
        return uri


def _follow(root: Mapping[str, Any], pointer: str) -> Any:
    node: Any = root
    for step in pointer.split("/")[1:]:
        name = urllib.parse.unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict) and name in node:
            node = node[name]
        else:
            return _MISSING
    return node
