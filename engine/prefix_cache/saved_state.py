"""Saved states: a token history with a snapshot, which clients save, export, import and resume."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..types.arrays import HostArray
from ..types.config import MAX_TOKENS, PREFILL_BLOCK
from ..types.errors import StateFileError
from ..types.snapshot import Snapshot, SnapshotFormat, first_block, num_bytes
from ..types.token_ids import ID_BYTES, id_bytes, ids_in
from .state_file import MAX_HEADER_BYTES, check_arrays, pack, parse_length, shown, unpack

_ARRAY_BYTES: Final = 160
"""Memory of an array on the host in addition to its data."""

_OBJECT_BYTES: Final = 512
"""Memory of a state in addition to its arrays, token ids and strings."""


@dataclass(frozen=True, eq=False, slots=True)
class SavedState:
    """A token history and a snapshot of the state after its first tokens.

    Attributes:
      tokens: Token ids of the whole history, at least one, `ID_BYTES` each.
      snapshot: Snapshot at the last block boundary up to which the history was prefilled as a prompt; None if that is
        its start. The tokens after it, such as the last response, are prefilled again.
      salt, tenant: Salt and tenant of the request; see `Request`. A file has neither.
      is_imported: Whether it comes from a file that is not signed with this server's key, or from a request that
        resumed such a state.
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
        return cls(id_bytes(token_ids), snapshot, salt, tenant, is_imported)

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the history."""
        return len(self.tokens) // ID_BYTES

    @property
    def token_ids(self) -> Sequence[int]:
        """Token ids of the history."""
        return ids_in(self.tokens)

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
      snapshot: Shapes and dtypes of snapshots; files contain no `hidden`.
      engine: Identity of the model, and of everything that affects the last bits of a state; "" if it is unknown.
    """

    model: str
    vocab_size: int
    snapshot: SnapshotFormat
    engine: str = ""

    @property
    def max_file_bytes(self) -> int:
        """Size of the largest file: recurrent state, a full window, `MAX_TOKENS` ids and a header."""
        window = self.snapshot.blocks(-(-self.snapshot.window // PREFILL_BLOCK))
        return num_bytes(*self.snapshot.recurrent.values(), window, ((MAX_TOKENS,), "int32")) + MAX_HEADER_BYTES

    def export(self, state: SavedState, key: bytes | None = None) -> bytes:
        """Returns a state as a file, signed if there is a key. The file names the engine that computed the state."""
        arrays: dict[str, HostArray] = {"tokens": np.frombuffer(state.tokens, np.int32)}
        length = 0
        if state.snapshot is not None:
            length = state.snapshot.length
            arrays |= self.snapshot.named(state.snapshot) | {"window": np.concatenate(state.snapshot.window)}
        facts = {"model": self.model, "length": str(length), "engine": "" if state.is_imported else self.engine}
        return pack(arrays, facts, key)

    def load(self, data: bytes, key: bytes | None = None) -> SavedState:
        """Returns the state in a file. It counts as this engine's own if the key has signed it and it names this
        engine.

        Raises:
          StateFileError: The file is broken, belongs to another model, or is not signed with the key.
        """
        arrays, facts = unpack(data, key)
        if facts.get("model") != self.model:
            raise StateFileError(f"is of another model ({shown(facts.get('model'))}; this one is {self.model})")
        tokens, length = self._tokens(arrays), parse_length(facts.get("length", "0"))
        is_imported = key is None or not self.engine or facts.get("engine") != self.engine
        if not length:
            return SavedState(tokens.tobytes(), is_imported=is_imported)
        if length % PREFILL_BLOCK or not 0 < length <= len(tokens):
            raise StateFileError(f"has a state after {length} tokens of {len(tokens)}")
        return SavedState(tokens.tobytes(), self._snapshot(arrays, length), is_imported=is_imported)

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
        check_arrays(arrays, {**formats.recurrent, "window": formats.blocks(blocks)})
        return Snapshot(length, formats.recurrent_of(arrays), tuple(np.split(arrays["window"], blocks)))
