"""API keys and their owners."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

UNNAMED: Final = "default"
"""Owner of keys without a name."""

_ENTRY: Final = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]{1,64}):)?(?P<key>[A-Za-z0-9._~+/=-]+)")
"""`NAME:KEY` or `KEY`. Keys have the characters of a bearer token (RFC 6750), which does not include the colon."""


class KeyFormatError(ValueError):
    """An API key is malformed. The message is one line and does not repeat the key."""


class ApiKeys:
    """Maps API keys to their owners. Only hashes of the keys are kept.

    Args:
      entries: `NAME:KEY`, or `KEY` alone, whose owner is "default". An owner may have several keys.

    Raises:
      KeyFormatError: An entry is malformed, or two owners have the same key.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._owners = _owners(entries)

    def replace(self, entries: Iterable[str]) -> None:
        """Replaces the accepted keys.

        Raises:
          KeyFormatError: An entry is malformed, or two owners have the same key. The keys are unchanged.
        """
        self._owners = _owners(entries)

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._owners)

    @property
    def owners(self) -> tuple[str, ...]:
        """Owners in the order of their first keys."""
        return tuple(dict.fromkeys(self._owners.values()))

    def owner(self, given: Iterable[bytes]) -> str | None:
        """Returns the owner of the first known key, or None. It takes the same time for wrong and right keys."""
        digests = [_digest(key) for key in given]
        found = [
            owner for known, owner in self._owners.items() for digest in digests if hmac.compare_digest(known, digest)
        ]
        return found[0] if found else None


def read_key_file(path: Path) -> list[str]:
    """Returns the entries of a key file, one per line, without empty lines and comments (#).

    Raises:
      OSError, UnicodeDecodeError: The file cannot be read.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _owners(entries: Iterable[str]) -> dict[bytes, str]:
    """Returns the owner of each key, by the hash of the key."""
    owners: dict[bytes, str] = {}
    for number, entry in enumerate(entries, 1):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise KeyFormatError(
                f"entry {number} must be KEY or NAME:KEY; keys are made of letters, digits and ._~+/=-, "
                "names of letters, digits and ._-"
            )
        owner = owners.setdefault(_digest(match["key"].encode()), match["name"] or UNNAMED)
        if owner != (match["name"] or UNNAMED):
            raise KeyFormatError(f"entry {number} repeats the key of {owner}")
    return owners


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
