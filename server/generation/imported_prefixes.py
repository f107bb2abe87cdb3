"""Index of imported states by the tokens that they cover, with which prompts find the states that they begin with."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...engine import ID_BYTES, SavedState, id_bytes


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that the snapshot of an imported state covers.

    Attributes:
      cache_salt: Salt of the requests that may restore the snapshot.
      length: Number of tokens.
      digest: SHA-256 of the tokens.
    """

    cache_salt: str
    length: int
    digest: bytes

    @classmethod
    def of(cls, state: SavedState, cache_salt: str) -> "Prefix | None":
        """Returns the prefix of a state; None if it has no snapshot."""
        if state.snapshot is None:
            return None
        length = state.snapshot.length
        return cls(cache_salt, length, hashlib.sha256(state.tokens[: length * ID_BYTES]).digest())


type _Lengths = defaultdict[int, dict[bytes, list[str]]]
"""Ids of states by the number of covered tokens and their digest, oldest first."""


@dataclass(slots=True)
class ImportedPrefixes:
    """Ids of imported states by their prefixes. Each tenant finds only its own."""

    _found: dict[tuple[str, str], _Lengths] = field(default_factory=dict)

    def add(self, owner: str, prefix: Prefix, state_id: str) -> None:
        """Adds a state."""
        lengths = self._found.setdefault((owner, prefix.cache_salt), defaultdict(dict))
        lengths[prefix.length].setdefault(prefix.digest, []).append(state_id)

    def remove(self, owner: str, prefix: Prefix, state_id: str) -> None:
        """Removes a state that was added."""
        lengths = self._found[owner, prefix.cache_salt]
        lengths[prefix.length][prefix.digest].remove(state_id)
        if not lengths[prefix.length][prefix.digest]:
            del lengths[prefix.length][prefix.digest]
        if not lengths[prefix.length]:
            del lengths[prefix.length]
        if not lengths:
            del self._found[owner, prefix.cache_salt]

    def longest(self, owner: str, cache_salt: str, token_ids: Sequence[int]) -> str | None:
        """Returns the newest state that covers the most tokens of a prompt, but not all; None if none covers any.

        Each token is hashed once, independent of the number of states.
        """
        lengths = self._found.get((owner, cache_salt))
        if lengths is None:
            return None
        found, start, digest, tokens = None, 0, hashlib.sha256(), id_bytes(token_ids)
        for length in sorted(each for each in lengths if each < len(token_ids)):
            digest.update(tokens[start * ID_BYTES : length * ID_BYTES])
            found, start = lengths[length].get(digest.digest(), found), length
        return None if found is None else found[-1]
