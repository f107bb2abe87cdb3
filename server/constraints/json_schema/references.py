"""References within a JSON schema, and the subschemas that they point to."""

import urllib.parse
from collections.abc import Mapping
from typing import Any, Final

from ..grammar import GrammarError

_MISSING: Final = object()

IDENTIFIERS: Final = ("$id", "id")
"""Keywords for a schema's URI: the current one, and draft 4's."""

_OLD_DRAFTS: Final = ("draft-03", "draft-04")
"""Drafts whose keyword for a schema's URI is `id`."""


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

    def resource(self, node: Mapping[str, Any], outer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the resource of a subschema, given the resource of the schema around it."""
        uri = node.get(self._identifier)
        return node if isinstance(uri, str) and not uri.startswith("#") else outer

    def target(self, pointer: str, resource: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Returns the subschema that a reference such as `#/$defs/a` points to, and the resource in which it was found.

        Raises:
          GrammarError: The reference has no target.
        """
        node = _follow(resource, pointer)
        if node is _MISSING:
            resource, node = self._root, _follow(self._root, pointer)
        if node is _MISSING:
            raise GrammarError(f"$ref {pointer[:60]!r} has no target in the schema")
        if not isinstance(node, dict | bool):
            raise GrammarError(f"$ref {pointer[:60]!r} does not lead to a schema")
        return node, resource


def has_only_local_references(schema: Any) -> bool:
    """Returns whether all references are paths within the schema."""
    if isinstance(schema, list):
        return all(map(has_only_local_references, schema))
    if not isinstance(schema, dict):
        return True
    pointer = schema.get("$ref", "#")
    is_local = not isinstance(pointer, str) or pointer == "#" or pointer.startswith("#/")
    return is_local and all(map(has_only_local_references, schema.values()))


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
