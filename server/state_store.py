"""States that clients have saved, under ids. They are kept in memory; an export keeps them for longer."""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from ..engine import SavedState
from .errors import ApiError


@dataclass(frozen=True, slots=True)
class StoredState:
    """
    Attributes:
      owner: who may see it; the tenant that saved it.
      state: what was saved.
      salt: of requests that go on from it: that of the request it is of. What an import leads to is shared with nobody,
        as nobody knows who made it.
    """

    id: str
    owner: str
    state: SavedState
    salt: str
    created: int = field(default_factory=lambda: int(time.time()))

    def described(self) -> dict[str, Any]:
        snapshot = self.state.snapshot
        return {
            "id": self.id,
            "object": "state",
            "created": self.created,
            "tokens": len(self.state.token_ids),
            "read_tokens": 0 if snapshot is None else snapshot.length,
            "bytes": self.state.num_bytes,
        }


class StateStore:
    """Nothing makes room by itself."""

    def __init__(self) -> None:
        self._stored: dict[str, StoredState] = {}

    def keep(self, state: SavedState, owner: str, limit: int, *, is_imported: bool = False) -> StoredState:
        """Stores a state under a new id.

        Args:
          limit: of bytes, of all states together.

        Raises:
          ApiError: there is no room.
        """
        taken = sum(stored.state.num_bytes for stored in self._stored.values())
        if taken + state.num_bytes > limit:
            raise ApiError(507, "there is no room for another state: delete one, or raise --state-cache-gib")
        state_id = f"state_{uuid4().hex}"
        stored = StoredState(state_id, owner, state, state_id if is_imported else state.salt)
        self._stored[state_id] = stored
        return stored

    def get(self, state_id: str, owner: str) -> StoredState:
        """
        Raises:
          ApiError: there is none of that id, or it is somebody else's.
        """
        stored = self._stored.get(state_id)
        if stored is None or stored.owner != owner:
            raise ApiError(404, f"there is no state with the id {state_id!r}")
        return stored

    def of(self, owner: str) -> list[StoredState]:
        """All of somebody's, oldest first."""
        return [stored for stored in self._stored.values() if stored.owner == owner]

    def delete(self, state_id: str, owner: str) -> None:
        """
        Raises:
          ApiError: see `get`.
        """
        del self._stored[self.get(state_id, owner).id]
