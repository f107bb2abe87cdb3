"""Token histories of requests that ended lately, so that clients can still save their state."""

import sys
from dataclasses import dataclass
from typing import Final

from ..core.config import MAX_TOKENS
from ..core.tenant_store import TenantStore

MAX_BYTES: Final = 16 * 2**20
MAX_TEXTS: Final = 1000

_ID_BYTES: Final = 4

_OBJECT_BYTES: Final = 1024
"""What an entry takes beside its token ids and strings: the objects, and their places in three dictionaries."""


@dataclass(frozen=True, slots=True)
class Text:
    """Token history of a request.

    Attributes:
      prompt: Token ids of the prompt, 4 bytes each; see `PrefixKey.tokens`.
      answer: Generated token ids, likewise.
      salt, tenant, is_imported: See `Request`.
    """

    prompt: bytes
    answer: bytes = b""
    salt: str = ""
    tenant: str = ""
    is_imported: bool = False

    def __len__(self) -> int:
        return (len(self.prompt) + len(self.answer)) // _ID_BYTES

    @property
    def num_bytes(self) -> int:
        """Memory that keeping it takes."""
        sizes = map(sys.getsizeof, (self.prompt, self.answer, self.salt, self.tenant))
        return sum(sizes) + _OBJECT_BYTES

    def tokens(self, num_generated: int | None = None) -> bytes:
        """Token ids of the prompt and of the first so many generated tokens, 4 bytes each; None takes all."""
        end = None if num_generated is None else num_generated * _ID_BYTES
        return self.prompt + self.answer[:end]


class RecentTexts:
    """The newest histories. The oldest of the tenant that holds most make room for others."""

    def __init__(self) -> None:
        self._texts: TenantStore[str, Text] = TenantStore()

    @property
    def num_bytes(self) -> int:
        """Memory that all histories take."""
        return self._texts.num_bytes

    def keep(self, request_id: str, text: Text) -> None:
        """Stores a history, in place of an earlier one of the same request."""
        if len(text) > MAX_TOKENS:
            return
        self._texts.put(request_id, text.tenant, text, text.num_bytes + sys.getsizeof(request_id))
        self._texts.make_room(MAX_TEXTS, MAX_BYTES)

    def get(self, request_id: str) -> Text | None:
        return self._texts.get(request_id)
