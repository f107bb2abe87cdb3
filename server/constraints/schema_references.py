"""References within a JSON schema: by a path, an anchor or a URI."""

import urllib.parse
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from .grammar_spec import GrammarError

_OLD_DRAFTS: Final = ("draft-03", "draft-04")
"""Drafts whose keyword for a schema's URI is `id`."""

_MISSING: Final = object()


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
