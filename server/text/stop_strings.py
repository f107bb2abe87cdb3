"""Finds the stop strings of a request in its answers, one character at a time (Aho and Corasick, 1975)."""

import asyncio
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, overload

ROOT: Final = 0
"""The node of a text that ends with no beginning of a stop string."""

_NONE: Final = -1

_LONG: Final = 512
"""Total characters from which on tables are built off the event loop: they take about half a millisecond."""


class StopStrings(Sequence[str]):
    """Stop strings with the tables that find all of them at once. Immutable: all choices of a request share one.

    A node stands for a beginning of one or several stop strings. The current node of a text is the longest beginning
    that the text ends with. A character takes constant time on average, however many stop strings there are and however
    long they are. A node takes 24 bytes.

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
        """The node after one more character, given its code point."""
        while (child := self._child(node, code)) == _NONE:
            if node == ROOT:
                return ROOT
            node = self._fallbacks[node]
        return child

    def found_at(self, node: int) -> str | None:
        """The longest stop string with which the node's beginning ends."""
        number = self._found[node]
        return None if number == _NONE else self._strings[number]

    def depth(self, node: int) -> int:
        """Length of the node's beginning."""
        return self._depths[node]

    def beginning(self, node: int, length: int) -> str:
        """The first characters of the node's beginning, which has at least that many."""
        return self._strings[self._owners[node]][:length] if length else ""

    def _child(self, node: int, code: int) -> int:
        """Nodes that a string adds follow each other, so only the first of them needs an entry in the dictionary."""
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
        """Sets each node's fallback: the node of the longest shorter beginning with which its own beginning ends."""
        for node in sorted(range(1, len(self._codes)), key=self._depths.__getitem__):
            parent = self._parents[node]
            if parent != ROOT:
                self._fallbacks[node] = self.next_node(self._fallbacks[parent], self._codes[node])
            if self._found[node] == _NONE:
                self._found[node] = self._found[self._fallbacks[node]]


class StopStringsBuilder:
    """Builds the tables of long stop strings on a thread, one request after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stop-strings")

    async def build(self, strings: Sequence[str]) -> StopStrings:
        if sum(map(len, strings)) < _LONG:
            return StopStrings(strings)
        return await asyncio.get_running_loop().run_in_executor(self._thread, StopStrings, strings)
