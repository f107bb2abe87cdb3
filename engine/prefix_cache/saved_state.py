"""Saved states: a token history with a snapshot, which clients save, export, import and resume."""

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..core.arrays import HostArray
from ..core.config import MAX_TOKENS, PREFILL_BLOCK
from ..core.errors import StateFileError
from ..core.snapshot import Snapshot, SnapshotFormat, first_block, num_bytes
from .state_file import MAX_HEADER_BYTES, check_arrays, pack, parse_length, shown, unpack
from .tree import ID_BYTES

_ARRAY_BYTES: Final = 160
"""Memory of an array on the host apart from its data."""

_OBJECT_BYTES: Final = 512
"""Memory of a state apart from its arrays, token ids and strings."""


@dataclass(frozen=True, eq=False, slots=True)
class SavedState:
    """A token history and a snapshot of the state after its first tokens.

    Attributes:
      tokens: Token ids of the whole history, at least one, `ID_BYTES` each.
      snapshot: Snapshot at the last block boundary up to which the history was prefilled as a prompt; None if that is
        its start. The tokens after it, such as the last response, are prefilled again.
      salt, tenant: Those of the request; see `Request`. A file has none.
      is_imported: Whether it comes from a file, or from a request that resumed an imported state.
    """

    tokens: bytes
    snapshot: Snapshot | None = None
    salt: str = ""
    tenant: str = ""
    is_imported: bool = False

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int],
        snapshot: Snapshot | None = None,
        salt: str = "",
        tenant: str = "",
        is_imported: bool = False,
    ) -> "SavedState":
        """Returns a saved state of unpacked token ids."""
        return cls(array("i", token_ids).tobytes(), snapshot, salt, tenant, is_imported)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the history."""
        return len(self.tokens) // ID_BYTES

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the history; they take ten times the memory of `tokens`, so they should not be kept."""
        return tuple(memoryview(self.tokens).cast("i"))

    @property
    def num_bytes(self) -> int:
        """Memory that the state takes. Arrays that the prefix cache shares are counted in full."""
        arrays = () if self.snapshot is None else (*self.snapshot.recurrent, *self.snapshot.window)
        hidden = None if self.snapshot is None else self.snapshot.hidden
        arrays = arrays if hidden is None else (*arrays, hidden)
        held = sum(array.nbytes + _ARRAY_BYTES for array in arrays)
        return held + sum(map(sys.getsizeof, (self.tokens, self.salt, self.tenant))) + _OBJECT_BYTES


@dataclass(frozen=True, slots=True)
class SavedStateFormat:
    """Format of one model's saved states, and of their files.

    Attributes:
      model: Identity of the model; see `model_identity`.
      vocab_size: Number of token ids.
      snapshot: Shapes and dtypes of snapshots; files hold no `hidden`.
    """

    model: str
    vocab_size: int
    snapshot: SnapshotFormat

    @property
    def max_file_bytes(self) -> int:
        """Size of the largest file: recurrent state, a full window, `MAX_TOKENS` ids and a header."""
        window = self.snapshot.blocks(-(-self.snapshot.window // PREFILL_BLOCK))
        return num_bytes(self.snapshot.h, self.snapshot.conv, window, ((MAX_TOKENS,), "int32")) + MAX_HEADER_BYTES

    def export(self, state: SavedState, key: bytes | None = None) -> bytes:
        """Returns a state as a file, signed if there is a key."""
        arrays: dict[str, HostArray] = {"tokens": np.frombuffer(state.tokens, np.int32)}
        length = 0
        if state.snapshot is not None:
            length, (h, conv) = state.snapshot.length, state.snapshot.recurrent
            arrays |= {"h": h, "conv": conv, "window": np.concatenate(state.snapshot.window)}
        return pack(arrays, {"model": self.model, "length": str(length)}, key)

    def load(self, data: bytes, key: bytes | None = None) -> SavedState:
        """Returns the state in a file.

        Raises:
          StateFileError: The file is broken, of another model, or not signed with the key.
        """
        arrays, facts = unpack(data, key)
        if facts.get("model") != self.model:
            raise StateFileError(f"is of another model ({shown(facts.get('model'))}; this one is {self.model})")
        tokens, length = self._tokens(arrays), parse_length(facts.get("length", "0"))
        if not length:
            return SavedState(tokens.tobytes(), is_imported=True)
        if length % PREFILL_BLOCK or not 0 < length <= len(tokens):
            raise StateFileError(f"has a state after {length} tokens of {len(tokens)}")
        return SavedState(tokens.tobytes(), self._snapshot(arrays, length), is_imported=True)

    def _tokens(self, arrays: Mapping[str, HostArray]) -> HostArray:
        tokens = arrays.get("tokens", np.zeros(0, np.int32))
        if tokens.dtype != np.int32:
            raise StateFileError(f"has tokens as {tokens.dtype.name}, expected int32")
        if tokens.ndim != 1 or not len(tokens) or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise StateFileError("holds no tokens, or some outside the vocabulary")
        if len(tokens) > MAX_TOKENS:
            raise StateFileError(f"holds {len(tokens)} tokens, more than {MAX_TOKENS}")
        return tokens

    def _snapshot(self, arrays: Mapping[str, HostArray], length: int) -> Snapshot:
        formats = self.snapshot
        blocks = length // PREFILL_BLOCK - first_block(length, formats.window)
        expected = {"h": formats.h, "conv": formats.conv, "window": formats.blocks(blocks)}
        check_arrays(arrays, expected)
        return Snapshot(length, (arrays["h"], arrays["conv"]), tuple(np.split(arrays["window"], blocks)))
