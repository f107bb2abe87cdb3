"""Saved states under ids, and the tokens by which prompts find imported ones.

States are kept in memory; an export can outlive the process.
"""

import hashlib
import time
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from ...engine import ID_BYTES, SavedState, TenantStore, id_bytes
from ..errors import kinds
from ..errors.request_errors import ApiError
from ..tenants import TenantLocks

MAX_STATES: Final = 10_000
"""Maximum number of states of all tenants together, so that a page of a list is found quickly."""

_OBJECT_BYTES: Final = 1024
"""Memory of an entry in addition to its state: the object, its id, and its dictionary entries."""


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


@dataclass(frozen=True, slots=True)
class StoredState:
    """A saved state under an id.

    Attributes:
      owner: The tenant that saved it. No other tenant sees it.
      state: The state.
      num_bytes: Memory that the entry takes.
      prefix: Tokens by which prompts find the state; None if it was not imported, or has no snapshot.
    """

    id: str
    owner: str
    state: SavedState
    num_bytes: int
    prefix: Prefix | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def described(self) -> dict[str, Any]:
        """Returns the object that the API shows."""
        snapshot = self.state.snapshot
        return {
            "id": self.id,
            "object": "state",
            "created": self.created,
            "tokens": self.state.num_tokens,
            "read_tokens": 0 if snapshot is None else snapshot.length,
            "bytes": self.num_bytes,
        }


class _ImportedStates:
    """Imported states of one owner and one salt, by the tokens that they cover."""

    def __init__(self) -> None:
        self._by_prefix: dict[tuple[int, bytes], dict[str, StoredState]] = {}
        self._counts = Counter[int]()
        self._lengths: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._lengths)

    def add(self, stored: StoredState, prefix: Prefix) -> None:
        """Adds a state, which is newer than the others."""
        self._by_prefix.setdefault((prefix.length, prefix.digest), {})[stored.id] = stored
        self._counts[prefix.length] += 1
        if self._counts[prefix.length] == 1:
            insort(self._lengths, prefix.length)

    def remove(self, stored: StoredState, prefix: Prefix) -> None:
        """Removes a state."""
        states = self._by_prefix[prefix.length, prefix.digest]
        del states[stored.id]
        if not states:
            del self._by_prefix[prefix.length, prefix.digest]
        self._counts[prefix.length] -= 1
        if not self._counts[prefix.length]:
            del self._counts[prefix.length]
            self._lengths.remove(prefix.length)

    def longest(self, token_ids: Sequence[int]) -> StoredState | None:
        """Returns the newest state that covers the most tokens of a prompt, but not all of them.

        Each token is hashed once. The number of digests is that of the different lengths, which are block boundaries.
        """
        states, start = None, 0
        digest, tokens = hashlib.sha256(), id_bytes(token_ids)
        for length in self._lengths:
            if length >= len(token_ids):
                break
            digest.update(tokens[start * ID_BYTES : length * ID_BYTES])
            states, start = self._by_prefix.get((length, digest.digest()), states), length
        return None if states is None else next(reversed(states.values()))


class StateStore:
    """Keeps states until they are deleted. None is evicted.

    Attributes:
      saves: Turns of saving or caching a state, one per tenant at a time, since each takes a part of an engine step.

    Args:
      num_tenants: Number of tenants. With several tenants, none may hold more than it leaves free.
    """

    def __init__(self, num_tenants: int = 1) -> None:
        self.saves = TenantLocks()
        self._is_shared = num_tenants > 1
        self._stored: TenantStore[str, StoredState] = TenantStore()
        self._imported: defaultdict[tuple[str, str], _ImportedStates] = defaultdict(_ImportedStates)

    @property
    def has_imported(self) -> bool:
        """Whether there are imported states with which prompts may begin."""
        return bool(self._imported)

    @property
    def num_bytes(self) -> int:
        """Memory that all states take."""
        return self._stored.num_bytes

    def keep(self, state: SavedState, owner: str, limit: int, prefix: Prefix | None = None) -> StoredState:
        """Stores a state under a new id.

        Args:
          limit: Maximum bytes of all states together.
          prefix: Tokens by which the owner's prompts find the state; None if it is found only by its id.

        Raises:
          ApiError: The store is full, or the owner would hold more than it leaves free for others.
        """
        stored = StoredState(f"state_{uuid4().hex}", owner, state, state.num_bytes + _OBJECT_BYTES, prefix)
        self._check_room(stored, limit)
        self._stored.put(stored.id, owner, stored, stored.num_bytes)
        if prefix is not None:
            self._imported[owner, prefix.cache_salt].add(stored, prefix)
        return stored

    def imported(self, owner: str, cache_salt: str, token_ids: Sequence[int]) -> StoredState | None:
        """Returns the owner's newest imported state that covers the most tokens of a prompt, but not all of them.

        The time that it takes does not depend on the number of states.
        """
        states = self._imported.get((owner, cache_salt))
        return None if states is None else states.longest(token_ids)

    def _check_room(self, stored: StoredState, limit: int) -> None:
        """Checks that a state fits.

        Raises:
          ApiError: The state does not fit.
        """
        store, owner = self._stored, stored.owner
        if len(store) >= MAX_STATES or not store.has_room(owner, stored.num_bytes, limit, is_shared=False):
            raise _full("there is no room for another state: delete one, or raise --state-cache-gib")
        is_greedy = store.count_of(owner) >= MAX_STATES - len(store)
        is_greedy |= not store.has_room(owner, stored.num_bytes, limit, is_shared=True)
        if self._is_shared and is_greedy:
            held = f"{store.count_of(owner)} states of {store.bytes_of(owner)} bytes"
            raise _full(f"this API key has {held}, and would leave less for others: delete one")

    def get(self, state_id: str, owner: str, param: str | None = None) -> StoredState:
        """Returns a state.

        Args:
          param: Field of the request that names the state.

        Raises:
          ApiError: No state has this id, or it belongs to another tenant.
        """
        stored = self._stored.get(state_id)
        if stored is None or stored.owner != owner:
            raise ApiError(kinds.NO_SUCH_OBJECT, f"there is no state with the id {state_id!r}", param=param)
        return stored

    def of(self, owner: str) -> Sequence[StoredState]:
        """Returns an owner's states, oldest first."""
        return self._stored.of(owner)

    def delete(self, state_id: str, owner: str) -> None:
        """Deletes a state.

        Raises:
          ApiError: See `get`.
        """
        stored = self.get(state_id, owner)
        self._stored.pop(stored.id)
        if stored.prefix is not None:
            self._forget(owner, stored, stored.prefix)

    def _forget(self, owner: str, stored: StoredState, prefix: Prefix) -> None:
        """Removes a state from those that prompts find."""
        states = self._imported[owner, prefix.cache_salt]
        states.remove(stored, prefix)
        if not states:
            del self._imported[owner, prefix.cache_salt]


def _full(message: str) -> ApiError:
    return ApiError(kinds.STATE_STORE_FULL, message)
