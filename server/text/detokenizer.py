"""Incremental detokenization of generated tokens, up to the first stop string.

All stop strings of a request are matched in one pass, character by character (Aho and Corasick, 1975).
"""

import codecs
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Final, overload

from .tokenizer import Tokenizer

ROOT: Final = 0
"""Node of a text that ends with no prefix of a stop string."""

_NONE: Final = -1


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


class Detokenizer:
    """Converts token ids to text deltas. Joined, these equal the whole text up to the first stop string.

    A delta never ends inside of a character's bytes or of a possible stop string: these are held back until more tokens
    arrive. The first stop string is the one that is *complete* first, so that generation can end there; of several that
    complete together, the longest. A stop string that contains a shorter one before its end is therefore never found.
    The result does not depend on how ids are grouped into pushes. The cost of a token does not depend on the length of
    the text.

    Args:
      tokenizer: Tokenizer of the model.
      stop: Stop strings; choices of a request can share one `StopStrings`.
      include_stop: Whether the stop string is part of the text.

    Attributes:
      stop_string: Stop string that was found, after which all deltas are empty; None before that.
      num_sent: Number of leading tokens whose whole text has been returned. A token that reaches into a stop string, or
        whose last character is incomplete, doesn't count, and neither does any token after it.

    Raises:
      ValueError: A stop string is empty.
    """

    stop_string: str | None

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self.stop_string = None
        self._tokenizer = tokenizer
        self._include_stop = include_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = None if not stop else stop if isinstance(stop, StopStrings) else StopStrings(stop)
        self._node = ROOT
        self.num_sent = 0
        self._num_decoded = 0
        self._num_returned = 0
        self._ends: deque[int] = deque()

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds token ids and returns the text that can be sent now, which is often empty."""
        if self.stop_string is not None:
            return ""
        if self._stop is None and not self._ends and len(token_ids) == 1:
            piece = self._tokenizer.token_bytes(token_ids[0])
            if piece.isascii():  # the text is complete, and is sent immediately
                self._num_decoded += len(piece)
                self._num_returned += len(piece)
                self.num_sent += 1
                return piece.decode()
        return self._count_sent(self._advance("".join(map(self._decode, token_ids))))

    def finish(self, token_ids: Sequence[int] = ()) -> str:
        """Adds the last ids, and returns the remaining text. An incomplete character becomes U+FFFD."""
        text = self.push(token_ids) if token_ids else ""
        if self.stop_string is not None:
            return text
        held = self._decoder.decode(b"", final=True)
        if not held and self._stop is None:  # the usual case: nothing was held back
            return text
        held = self._advance(held)
        if self._stop is not None:
            held += self._stop.prefix(self._node, self._stop.depth(self._node))
            self._node = ROOT
        return text + self._count_sent(held)

    def _decode(self, token_id: int) -> str:
        """Returns the characters that a token completes, and records where its own last character ends."""
        text = self._decoder.decode(self._tokenizer.token_bytes(token_id))
        self._num_decoded += len(text)
        self._ends.append(self._num_decoded + bool(self._decoder.getstate()[0]))
        return text

    def _count_sent(self, text: str) -> str:
        self._num_returned += len(text)
        ends = self._ends
        while ends and ends[0] <= self._num_returned:
            ends.popleft()
            self.num_sent += 1
        return text

    def _advance(self, new: str) -> str:
        """Matches new text and returns the text that can be sent. The node represents the held text, which is not
        copied.
        """
        stop = self._stop
        if stop is None:
            return new
        before, node = self._node, self._node
        for end, code in enumerate(map(ord, new), start=1):
            node = stop.next_node(node, code)
            if (found := stop.found_at(node)) is not None:
                self.stop_string = found
                self._node = ROOT
                return _first(stop, before, new, end if self._include_stop else end - len(found))
        self._node = node
        return _first(stop, before, new, len(new) - stop.depth(node))


def _first(stop: StopStrings, node: int, new: str, end: int) -> str:
    """Returns held text and new text up to `end`, which counts from the new text's start and may be negative."""
    num_held = stop.depth(node)
    return stop.prefix(node, min(num_held, num_held + end)) + new[: max(end, 0)]
