"""A text and the state that spares reading it again: what callers save, hand on, and resume from."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from .config import PREFILL_BLOCK
from .errors import StateFileError
from .recent import MAX_TOKENS
from .snapshot import HostArray, Snapshot, first_block
from .state_file import pack, unpack

_HEADER_BYTES: Final = 16 * 2**10
"""A file's names, shapes and facts take some 600 bytes."""


@dataclass(frozen=True, eq=False, slots=True)
class SavedState:
    """
    Attributes:
      token_ids: the whole text, at least one token.
      snapshot: after its last point of the grid up to which it was read as a prompt; None where that is its beginning.
        What follows, such as the last reply, is read again.
      salt, tenant: of the request that it is of; see `Request`. An import has none.
    """

    token_ids: tuple[int, ...]
    snapshot: Snapshot | None = None
    salt: str = ""
    tenant: str = ""

    @property
    def num_bytes(self) -> int:
        """What keeping it costs."""
        if self.snapshot is None:
            return 4 * len(self.token_ids)
        return 4 * len(self.token_ids) + self.snapshot.own_bytes + sum(block.nbytes for block in self.snapshot.window)


@dataclass(frozen=True, slots=True)
class StateFormat:
    """What states of a model look like.

    Attributes:
      model: which one; see `model_identity`.
      vocab_size, window: the model's.
      h, conv, token: shape and type of the recurrent layers' arrays, and of one token's keys and values.
    """

    model: str
    vocab_size: int
    window: int
    h: tuple[tuple[int, ...], str]
    conv: tuple[tuple[int, ...], str]
    token: tuple[tuple[int, ...], str]

    @property
    def max_file_bytes(self) -> int:
        """The size of the largest file there is: recurrent state, a full window, `MAX_TOKENS` ids and a header."""
        blocks = -(-self.window // PREFILL_BLOCK)
        shape, kind = self.token
        arrays = (self.h, self.conv, ((blocks * PREFILL_BLOCK, *shape), kind), ((MAX_TOKENS,), "int32"))
        return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in arrays) + _HEADER_BYTES

    def export(self, state: SavedState, key: bytes | None = None) -> bytes:
        """A state as a file, signed if there is a key."""
        arrays: dict[str, HostArray] = {"tokens": np.array(state.token_ids, np.int32)}
        length = 0
        if state.snapshot is not None:
            length, (h, conv) = state.snapshot.length, state.snapshot.recurrent
            arrays |= {"h": h, "conv": conv, "window": np.concatenate(state.snapshot.window)}
        return pack(arrays, {"model": self.model, "length": str(length)}, key)

    def load(self, data: bytes, key: bytes | None = None) -> SavedState:
        """The state in a file.

        Raises:
          StateFileError: it is broken, of another model, or not signed by the key.
        """
        arrays, facts = unpack(data, key)
        if facts.get("model") != self.model:
            raise StateFileError(f"is of another model ({facts.get('model')}; this one is {self.model})")
        tokens, told = arrays.get("tokens", np.zeros(0, np.int32)), facts.get("length", "0")
        if tokens.ndim != 1 or not len(tokens) or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise StateFileError("holds no tokens, or some outside the vocabulary")
        if not told.isdecimal():
            raise StateFileError(f"has the length {told!r}")
        token_ids, length = tuple(tokens.tolist()), int(told)
        if not length:
            return SavedState(token_ids)
        if length % PREFILL_BLOCK or not 0 < length <= len(token_ids):
            raise StateFileError(f"has a state after {length} tokens of {len(token_ids)}")
        return SavedState(token_ids, self._snapshot(arrays, length))

    def _snapshot(self, arrays: dict[str, HostArray], length: int) -> Snapshot:
        blocks = length // PREFILL_BLOCK - first_block(length, self.window)
        shape, kind = self.token
        expected = {"h": self.h, "conv": self.conv, "window": ((blocks * PREFILL_BLOCK, *shape), kind)}
        for name, wanted in expected.items():
            array = arrays.get(name)
            found = None if array is None else (array.shape, array.dtype.name)
            if found != wanted:
                raise StateFileError(f"has {name} as {found}, expected {wanted}")
        return Snapshot(length, (arrays["h"], arrays["conv"]), tuple(np.split(arrays["window"], blocks)))
