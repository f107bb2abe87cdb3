"""Regular expressions of all strings except a few, and the strings of regular expressions that have few."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

MAX_CHARACTERS: Final = 2048
"""Maximum characters of all excluded strings together."""

MAX_LENGTH: Final = 128
"""Maximum characters of an excluded string. Each character nests a group."""

MAX_FEW: Final = 64
"""Maximum number of strings that are few: all letters and digits are."""

_MAX_BUILT: Final = 512
"""Maximum number of strings and parts of strings that are built to find few; each takes some 0.2 microseconds."""

_ANY: Final = r"[\s\S]"
_CHAR: Final = r"(?:[^\\^$.|?*+()\[\]{}]|\\[^A-Za-z0-9])"
_IN_CLASS: Final = r"([^\\\]\[^&~-]|\\[^A-Za-z0-9])"
_RANGE: Final = rf"{_IN_CLASS}(?:-{_IN_CLASS})?"
_ITEM: Final = re.compile(rf"((?:{_CHAR}(?![?*+{{]))+|{_CHAR})|\[((?:{_RANGE})+)\]|\((?:\?:)?")
_COUNT: Final = re.compile(r"\?|\{(\d{1,3})(?:,(\d{1,3}))?\}")

type _Trie = dict[str, "_Trie"]

_END: Final = ""
"""Key of a trie's node at which a string ends."""


def all_but(strings: Iterable[str]) -> str:
    """Returns a pattern of all strings except the given ones, which negates only single characters."""
    trie: _Trie = {}
    for string in strings:
        node = trie
        for char in string:
            node = node.setdefault(char, {})
        node[_END] = {}
    return f"^(?:{_others(trie)})$"


def _others(trie: _Trie) -> str:
    """Returns a pattern of the strings that a trie does not contain."""
    chars = sorted(char for char in trie if char != _END)
    other = f"[^{''.join(map(_in_class, chars))}]" if chars else _ANY
    alternatives = [f"{other}{_ANY}*", *(f"{re.escape(char)}(?:{_others(trie[char])})" for char in chars)]
    return "|".join(alternatives if _END in trie else ["", *alternatives])


def _in_class(char: str) -> str:
    return f"\\{char}" if char in r"\]^-[&~" else char


def few(pattern: str) -> list[str] | None:
    """Returns the strings in which a pattern is found; None if they are many, or the pattern is not a simple one.

    A simple pattern is anchored at both ends, and has characters, classes, groups, alternatives and counts.
    """
    if not (pattern.startswith("^") and pattern.endswith("$") and len(pattern) <= MAX_CHARACTERS):
        return None
    reader = _FewReader(pattern[1:-1])
    try:
        found = reader.sequence()
    except _ManyError:
        return None
    return found if found and not reader.left else None


class _ManyError(Exception):
    """A pattern has many strings, or is not a simple one."""


class _FewReader:
    """Reads a simple pattern. Its methods raise `_ManyError` if it has many strings, or is not simple.

    Attributes:
      left: Part of the pattern that was not read yet.
    """

    def __init__(self, pattern: str) -> None:
        self.left = pattern
        self._num_built = 0

    def sequence(self) -> list[str]:
        """Reads up to the end of an alternative, and returns its strings."""
        found = [""]
        while self.left and self.left[0] not in "|)":
            found = self._joined(found, self._counted(self._item()))
        return found

    def _item(self) -> list[str]:
        item = _ITEM.match(self.left)
        if item is None:
            raise _ManyError
        self.left = self.left[item.end() :]
        if item[1]:
            return [re.sub(r"\\(.)", r"\1", item[1], flags=re.DOTALL)]
        if item[2]:
            return self._few(_members(item[2]))
        found = self.sequence()
        while self.left.startswith("|"):
            self.left = self.left[1:]
            found = self._few([*found, *self.sequence()])
        if not self.left:
            raise _ManyError
        self.left = self.left[1:]  # the group's end
        return found

    def _counted(self, item: list[str]) -> list[str]:
        count = _COUNT.match(self.left)
        if count is None:
            return item
        self.left = self.left[count.end() :]
        low = int(count[1] or 0)
        high = int(count[2] or count[1] or 1)
        repeated, found = [""], [] if low else [""]
        for number in range(1, high + 1):
            repeated = self._joined(repeated, item)
            found = self._few([*found, *repeated]) if number >= low else found
        return found

    def _joined(self, starts: list[str], ends: list[str]) -> list[str]:
        return self._few(start + end for start in starts for end in ends)

    def _few(self, strings: Iterable[str]) -> list[str]:
        """Returns strings, each once."""
        found: dict[str, None] = {}
        for string in strings:
            self._num_built += 1
            found[string] = None
            if self._num_built > _MAX_BUILT or len(found) > MAX_FEW or len(string) > MAX_LENGTH:
                raise _ManyError
        return list(found)


def _members(text: str) -> Iterator[str]:
    """Yields the characters of a class."""
    for first, last in re.findall(_RANGE, text):
        yield from map(chr, range(ord(first[-1]), ord((last or first)[-1]) + 1))
