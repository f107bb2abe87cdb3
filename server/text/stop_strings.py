"""Matches all stop strings of a request in one pass, character by character (Aho and Corasick, 1975)."""

import asyncio
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, overload

ROOT: Final = 0
"""Node of a text that ends with no prefix of a stop string."""

_NONE: Final = -1

_LONG: Final = 512
"""Total characters above which a thread builds the tables, which takes about half a millisecond."""


class StopStrings(Sequence[str]):
    """Stop strings with their Aho-Corasick automaton. Immutable, so that choices of a request can share one.

    A node stands for a prefix of one or several stop strings. The current node of a text is the longest prefix that the
    text ends with. A character takes constant time on average, independent of the number and length of stop strings. A
    node takes 24 bytes.

    Args:
      strings: Stop strings.

    Raises:
      ValueError: A stop string is empty.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        if not all(strings):
            raise ValueError("a stop string must not be empty")
        self._strings = tuple(strings)
        self._codes = array("i", [_NONE])
        self._parents = array("i", [_NONE])
        self._depths = array("i", [0])
        self._owners = array("i", [_NONE])
        self._found = array("i", [_NONE])
        self._branches: dict[tuple[int, int], int] = {}
        for number, string in enumerate(self._strings):
            self._insert(number, string)
        self._fallbacks = array("i", bytes(4 * len(self._codes)))
        self._link()

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._strings[index]

    def __len__(self) -> int:
        return len(self._strings)

    def next_node(self, node: int, code: int) -> int:
        """Returns the node after one more character, given its code point."""
        while (child := self._child(node, code)) == _NONE:
            if node == ROOT:
                return ROOT
            node = self._fallbacks[node]
        return child

    def found_at(self, node: int) -> str | None:
        """Returns the longest stop string that the node's prefix ends with."""
        number = self._found[node]
        return None if number == _NONE else self._strings[number]

    def depth(self, node: int) -> int:
        """Returns the length of the node's prefix."""
        return self._depths[node]

    def prefix(self, node: int, length: int) -> str:
        """Returns the first `length` characters of the node's prefix, which has at least that many."""
        return self._strings[self._owners[node]][:length] if length else ""

    def _child(self, node: int, code: int) -> int:
        """Returns a child node or -1. Nodes of a string are consecutive, so only branches are in the dictionary."""
        following = node + 1
        if following < len(self._codes) and self._codes[following] == code and self._parents[following] == node:
            return following
        return self._branches.get((node, code), _NONE)

    def _insert(self, number: int, string: str) -> None:
        codes = array("i", map(ord, string))
        node = depth = 0
        while depth < len(codes) and (child := self._child(node, codes[depth])) != _NONE:
            node, depth = child, depth + 1
        start, num_new = len(self._codes), len(codes) - depth
        if num_new:
            self._branches[node, codes[depth]] = start
            self._codes.extend(codes[depth:])
            self._parents.extend((node, *range(start, start + num_new - 1)))
            self._depths.extend(range(depth + 1, len(codes) + 1))
            self._owners.extend([number] * num_new)
            self._found.extend([_NONE] * num_new)
            node = start + num_new - 1
        self._found[node] = number

    def _link(self) -> None:
        """Sets each node's fallback: the node of the longest proper suffix of its prefix that is a prefix too."""
        for node in sorted(range(1, len(self._codes)), key=self._depths.__getitem__):
            parent = self._parents[node]
            if parent != ROOT:
                self._fallbacks[node] = self.next_node(self._fallbacks[parent], self._codes[node])
            if self._found[node] == _NONE:
                self._found[node] = self._found[self._fallbacks[node]]


class StopStringsBuilder:
    """Builds the automata of long stop strings on a thread, one request at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stop-strings")

    async def build(self, strings: Sequence[str]) -> StopStrings:
        """Returns the automaton of stop strings."""
        if sum(map(len, strings)) < _LONG:
            return StopStrings(strings)
        return await asyncio.get_running_loop().run_in_executor(self._thread, StopStrings, strings)
