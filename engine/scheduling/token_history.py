"""Token histories of requests that ended lately, so that clients can still save their states."""

import sys
from dataclasses import dataclass
from typing import Final

from ..core.config import MAX_TOKENS
from ..core.tenant_store import TenantStore

MAX_BYTES: Final = 16 * 2**20
MAX_HISTORIES: Final = 1000
"""Limits of all histories together: bytes of memory, and their number."""

_ID_BYTES: Final = 4

_OBJECT_BYTES: Final = 1024
"""Memory per entry besides token ids and strings: its objects, and entries of three dictionaries."""


@dataclass(frozen=True, slots=True)
class TokenHistory:
    """All tokens of a request.

    Attributes:
      prompt: Token ids of the prompt, 4 bytes each, like `PrefixKey.tokens`.
      generated: Generated token ids, 4 bytes each.
      salt: The request's `cache_salt`.
      tenant: The request's `tenant`.
      is_imported: The request's `state_is_imported`.
    """

    prompt: bytes
    generated: bytes = b""
    salt: str = ""
    tenant: str = ""
    is_imported: bool = False

    def __len__(self) -> int:
        return (len(self.prompt) + len(self.generated)) // _ID_BYTES

    @property
    def num_bytes(self) -> int:
        """Memory that the history takes, in bytes."""
        sizes = map(sys.getsizeof, (self.prompt, self.generated, self.salt, self.tenant))
        return sum(sizes) + _OBJECT_BYTES

    def tokens(self, num_generated: int | None = None) -> bytes:
        """Returns the token ids of the prompt and of generated tokens, 4 bytes each.

        Args:
          num_generated: Number of generated tokens to include; None includes all.
        """
        end = None if num_generated is None else num_generated * _ID_BYTES
        return self.prompt + self.generated[:end]


class TokenHistories:
    """Histories of the latest requests. The oldest history of the tenant with the most memory is evicted first."""

    def __init__(self) -> None:
        self._histories: TenantStore[str, TokenHistory] = TenantStore()

    @property
    def num_bytes(self) -> int:
        """Memory that all histories take, in bytes."""
        return self._histories.num_bytes

    def keep(self, request_id: str, history: TokenHistory) -> None:
        """Stores a history, and replaces an earlier one with the same id."""
        if len(history) > MAX_TOKENS:
            return
        self._histories.put(request_id, history.tenant, history, history.num_bytes + sys.getsizeof(request_id))
        self._histories.make_room(MAX_HISTORIES, MAX_BYTES)

    def get(self, request_id: str) -> TokenHistory | None:
        """Returns the history of a request; None if it was evicted or never stored."""
        return self._histories.get(request_id)
