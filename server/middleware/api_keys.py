"""API keys and whose they are."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

UNNAMED: Final = "default"
"""The owner of keys that have no name."""

_ENTRY: Final = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]{1,64}):)?(?P<key>[A-Za-z0-9._~+/=-]+)")
"""Keys are what a bearer token may be made of (RFC 6750), so the colon is none of a key's."""


class KeyFormatError(ValueError):
    """What is given as an API key is none; the text is one line, and does not repeat it."""


class ApiKeys:
    """Keys and whose they are. Of a key nothing but its hash is kept.

    Args:
      entries: `NAME:KEY`, or `KEY` alone, whose owner is "default". Several keys may have the same owner.

    Raises:
      KeyFormatError: an entry is neither, or two owners have the same key.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._owners: dict[bytes, str] = {}
        for number, entry in enumerate(entries, 1):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                raise KeyFormatError(
                    f"entry {number} must be KEY or NAME:KEY; keys are made of letters, digits and ._~+/=-, "
                    "names of letters, digits and ._-"
                )
            owner = self._owners.setdefault(_digest(match["key"].encode()), match["name"] or UNNAMED)
            if owner != (match["name"] or UNNAMED):
                raise KeyFormatError(f"entry {number} repeats the key of {owner}")

    def __bool__(self) -> bool:
        return bool(self._owners)

    @property
    def owners(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._owners.values()))

    def owner(self, given: Iterable[bytes]) -> str | None:
        """Whose key is among those given; None where none is. Takes as long for a wrong key as for a right one."""
        digests = [_digest(key) for key in given]
        found = [
            owner for known, owner in self._owners.items() for digest in digests if hmac.compare_digest(known, digest)
        ]
        return found[0] if found else None


def read_key_file(path: Path) -> list[str]:
    """One entry a line; empty lines and those that begin with # are left out.

    Raises:
      OSError, UnicodeDecodeError: the file cannot be read.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
