"""Complements: schemas that accept exactly the values that another schema refuses, using what llguidance enforces."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from .shapes import ALL_TYPES, InexactError, Shapes, WorkLimit, identity, is_closed, own_values, required, type_of
from .strings import MAX_CHARACTERS, MAX_LENGTH, all_but

type Schema = Mapping[str, Any] | bool

_ASSERTIONS: Final = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "if",
        "maxProperties",
        "minProperties",
        "multipleOf",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "then",
        "uniqueItems",
    }
)
"""Keywords from which no complement can be built."""

_OF_OTHERS: Final = frozenset(
    {"additionalItems", "additionalProperties", "items", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
)
"""Keywords from which no complement can be built, unless they allow everything."""

_OPPOSITES: Final[Mapping[str, tuple[str, Callable[[int], int], str]]] = {
    "maxItems": ("minItems", lambda limit: limit + 1, "array"),
    "maxLength": ("minLength", lambda limit: limit + 1, "string"),
    "minItems": ("maxItems", lambda limit: limit - 1, "array"),
    "minLength": ("maxLength", lambda limit: limit - 1, "string"),
}
_OPPOSITE_RANGES: Final = {
    "exclusiveMaximum": "minimum",
    "exclusiveMinimum": "maximum",
    "maximum": "exclusiveMinimum",
    "minimum": "exclusiveMaximum",
}


def union(schemas: Iterable[Schema]) -> Schema:
    """Returns a schema of the values that fit at least one of several."""
    kept = [each for each in schemas if each is not False]
    if True in kept or not kept:
        return bool(kept)
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


def intersection(schemas: Iterable[Schema]) -> Schema:
    """Returns a schema of the values that fit all of several."""
    kept = [each for each in schemas if each is not True]
    if False in kept or not kept:
        return not kept
    return kept[0] if len(kept) == 1 else {"allOf": kept}


class Complements:
    """Builds complements.

    Args:
      shapes: Facts about schemas.
      resolve: Returns the subschema that a reference points to.
      exactly: Returns a schema as llguidance enforces it; raises `InexactError` if it would drop a keyword.
      work: Limit of the work.
    """

    def __init__(
        self, shapes: Shapes, resolve: Callable[[str], Any], exactly: Callable[[Any], Schema], work: WorkLimit
    ) -> None:
        self._shapes = shapes
        self._resolve = resolve
        self._exactly = exactly
        self._work = work

    def of(self, node: Any, within: Any = True, depth: int = 0) -> Schema:
        """Returns the complement of a schema.

        Args:
          within: Schema that the values also fit, which makes complements smaller.

        Raises:
          InexactError: The complement has no schema that llguidance enforces.
        """
        self._work.spend(depth)
        if isinstance(node, bool):
            return not node
        if not isinstance(node, dict):
            raise InexactError
        return union(each for key in node for each in self._of_keyword(node, key, within, depth))

    def _of_keyword(self, node: Mapping[str, Any], key: str, within: Any, depth: int) -> Iterator[Schema]:
        """Yields schemas of the values that don't fit one keyword."""
        value = node[key]
        match key:
            case "type":
                yield self._of_types(value, within)
            case "const" | "enum":
                yield self._of_values(own_values(node) or [], within)
            case "required":
                yield from ({"type": "object", "properties": {name: False}} for name in required(node))
            case "properties":
                yield from self._of_properties(value, within, depth)
            case "additionalProperties" if is_closed(node) and (names := self._shapes.only_names(within)) is not None:
                others = [name for name in names if name not in node.get("properties", ())]
                yield from ({"type": "object", "required": [name]} for name in others)
            case "minProperties" if value == 1:
                yield {"const": {}}
            case "not":
                yield self._exactly(value)
            case "$ref":
                yield self.of(self._resolve(value), within, depth + 1)
            case "allOf":
                yield from (self.of(each, within, depth + 1) for each in value)
            case "anyOf":
                yield intersection(self.of(each, within, depth + 1) for each in value)
            case _ if key in _OPPOSITES:
                opposite, limit, kind = _OPPOSITES[key]
                yield False if key.startswith("min") and value == 0 else {"type": kind, opposite: limit(value)}
            case _ if key in _OPPOSITE_RANGES and not isinstance(value, bool):
                if isinstance(node.get("exclusiveMinimum"), bool) or isinstance(node.get("exclusiveMaximum"), bool):
                    raise InexactError
                yield {"type": "number", _OPPOSITE_RANGES[key]: value}
            case _ if key in _ASSERTIONS or (key in _OF_OTHERS and value is not True and value != {}):
                raise InexactError

    def _of_types(self, named: Any, within: Any) -> Schema:
        named = {named} if isinstance(named, str) else {*named}
        others = self._shapes.types(within) - named - ({"integer"} if "number" in named else set())
        if "number" in others and "integer" in named:
            raise InexactError  # numbers with a fraction
        return _of_type(others)

    def _of_properties(self, properties: Mapping[str, Any], within: Any, depth: int) -> Iterator[Schema]:
        for name, schema in properties.items():
            others = self.of(schema, self._shapes.property(within, name), depth + 1)
            if others is not False:
                yield {"type": "object", "required": [name], "properties": {name: others}}

    def _of_values(self, values: Sequence[Any], within: Any) -> Schema:
        self._work.spend_values(len(values))
        excluded = {*map(identity, values)}
        known = self._shapes.values(within)
        if known is not None:
            left = [value for value in known if identity(value) not in excluded]
            return {"enum": left} if left else False
        types = self._shapes.types(within)
        touched = frozenset(map(type_of, values)) & types
        if touched & {"integer", "number"}:
            touched |= types & {"integer", "number"}
        if touched & {"array", "object"}:
            raise InexactError
        strings = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if type_of(value) in ("integer", "number")]
        return union(
            [
                _of_type(types - touched),
                *([_of_strings(strings)] if "string" in touched else []),
                *(_of_numbers(numbers, types) if touched & {"integer", "number"} else []),
                *({"const": flag} for flag in (True, False) if "boolean" in touched and identity(flag) not in excluded),
            ]
        )


def _of_type(types: frozenset[str]) -> Schema:
    """Returns a schema of all values of several types."""
    if types == ALL_TYPES:
        return True
    named = sorted(types - {"integer"} if "number" in types else types)
    return {"type": named[0] if len(named) == 1 else named} if named else False


def _of_strings(excluded: Sequence[str]) -> Schema:
    if sum(map(len, excluded)) > MAX_CHARACTERS or max(map(len, excluded)) > MAX_LENGTH:
        raise InexactError
    return {"type": "string", "pattern": all_but(excluded)}


def _of_numbers(excluded: Sequence[float], types: frozenset[str]) -> Iterator[Schema]:
    """Yields schemas of the ranges between numbers."""
    limits = sorted({*excluded})
    if "number" in types:
        if len(limits) > 1 and not all(limit == int(limit) for limit in limits):
            raise InexactError  # llguidance takes 1 for above 1 and below 1.5
        yield {"type": "number", "exclusiveMaximum": limits[0]}
        for low, high in pairwise(limits):
            yield {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
        yield {"type": "number", "exclusiveMinimum": limits[-1]}
        return
    whole = [int(limit) for limit in limits if limit == int(limit)]
    yield {"type": "integer", "maximum": whole[0] - 1}
    for low, high in pairwise(whole):
        if high - low > 1:
            yield {"type": "integer", "minimum": low + 1, "maximum": high - 1}
    yield {"type": "integer", "minimum": whole[-1] + 1}
