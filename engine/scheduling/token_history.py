"""Token histories of requests that ended lately, so that clients can still save their state."""

import sys
from dataclasses import dataclass
from typing import Final

from ..core.config import MAX_TOKENS
from ..core.tenant_store import TenantStore

MAX_BYTES: Final = 16 * 2**20
MAX_HISTORIES: Final = 1000

_ID_BYTES: Final = 4

_OBJECT_BYTES: Final = 1024
"""What an entry takes beside its token ids and strings: the objects, and their places in three dictionaries."""


@dataclass(frozen=True, slots=True)
class TokenHistory:
    """Token history of a request.

    Attributes:
      prompt: Token ids of the prompt, 4 bytes each; see `PrefixKey.tokens`.
      generated: Generated token ids, likewise.
      salt, tenant, is_imported: See `Request`.
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
        """Memory that keeping it takes."""
        sizes = map(sys.getsizeof, (self.prompt, self.generated, self.salt, self.tenant))
        return sum(sizes) + _OBJECT_BYTES

    def tokens(self, num_generated: int | None = None) -> bytes:
        """Token ids of the prompt and of the first so many generated tokens, 4 bytes each; None takes all."""
        end = None if num_generated is None else num_generated * _ID_BYTES
        return self.prompt + self.generated[:end]


class TokenHistories:
    """The newest histories. The oldest of the tenant that holds most make room for others."""

    def __init__(self) -> None:
        self._histories: TenantStore[str, TokenHistory] = TenantStore()

    @property
    def num_bytes(self) -> int:
        """Memory that all histories take."""
        return self._histories.num_bytes

    def keep(self, request_id: str, history: TokenHistory) -> None:
        """Stores a history, in place of an earlier one of the same request."""
        if len(history) > MAX_TOKENS:
            return
        self._histories.put(request_id, history.tenant, history, history.num_bytes + sys.getsizeof(request_id))
        self._histories.make_room(MAX_HISTORIES, MAX_BYTES)

    def get(self, request_id: str) -> TokenHistory | None:
        return self._histories.get(request_id)
