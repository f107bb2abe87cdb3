"""Keys of the prefix cache: token prefixes, cut into blocks."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ..core.config import PREFILL_BLOCK

ID_BYTES: Final = array("i").itemsize
"""Size of a token id."""

BLOCK_BYTES: Final = ID_BYTES * PREFILL_BLOCK
"""Size of a block's token ids."""


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Tokens of a prompt or of a token history.

    Attributes:
      salt: Separates caches: keys with different salts never match.
      tokens: Token ids, `ID_BYTES` each.
    """

    salt: str
    tokens: bytes
    _hashes: list[tuple[bytes, ...]] = field(default_factory=lambda: [()], init=False, compare=False, repr=False)

    @classmethod
    def of(cls, token_ids: Sequence[int], salt: str) -> "PrefixKey":
        """Returns the key of these tokens."""
        return cls(salt, array("i", token_ids).tobytes())

    def __len__(self) -> int:
        return len(self.tokens) // ID_BYTES

    def block(self, index: int) -> bytes:
        """Returns the tokens of a whole block."""
        return self.tokens[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]

    def partial_block(self, length: int) -> bytes:
        """Returns the tokens between the last block boundary and `length`."""
        return self.tokens[length // PREFILL_BLOCK * BLOCK_BYTES : length * ID_BYTES]

    def block_hash(self, count: int) -> bytes:
        """Returns a hash of the salt and the first `count` blocks, chained block by block.

        Each hash is computed once. Any thread may call this: two at the same time compute the same.
        """
        hashes = self._hashes[0]
        if count >= len(hashes):
            more = list(hashes) or [hashlib.sha256(json.dumps(["roost-prefix-2", self.salt]).encode()).digest()]
            for index in range(len(more) - 1, count):
                more.append(hashlib.sha256(more[-1] + self.block(index)).digest())
            self._hashes[0] = hashes = tuple(more)
        return hashes[count]
