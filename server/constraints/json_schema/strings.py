"""Regular expressions of all strings except a few."""

import re
from collections.abc import Iterable
from typing import Final

MAX_CHARACTERS: Final = 2048
"""Maximum characters of all excluded strings together."""

MAX_LENGTH: Final = 128
"""Maximum characters of an excluded string. Each character nests a group."""

_ANY: Final = r"[\s\S]"

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
