"""States outside the prefix cache, and their files: safetensors with metadata, and a digest or signature of both.

A saved state is a token history with a snapshot, which clients save, export, import and resume. A request snapshot is
the state of a request during its generation, from which it continues with the same bits. The prefix cache has none,
since its states come from prefilled prompts.
"""

import hashlib
import hmac
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from ..types.arrays import ID_BYTES, ArrayFormat, HostArray, id_bytes, ids_in
from ..types.config import MAX_TOKENS, PREFILL_BLOCK
from ..types.errors import StateFileError
from ..types.snapshot import Snapshot, SnapshotFormat, first_block, is_finite, num_bytes, window_edges

FORMAT: Final = "roost-state-1"

INT8_FORMAT: Final = "roost-state-2"
"""Format of files with keys and values in int8."""

REQUEST_SNAPSHOT_FORMAT: Final = "roost-checkpoint-1"

MAX_HEADER_BYTES: Final = 16 * 2**10
"""Maximum size of a file's header. Names, shapes and metadata take some 600 bytes; parsed JSON takes up to thirty times
its size."""

_LONGEST_FACT: Final = 100
"""Maximum number of characters of a file's text in an error message."""

_CHECKSUM_KEY: Final = b"roost"
"""Key of the digest in files that are not signed."""

_DTYPES: Final[Mapping[str, Any]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "I8": np.int8,
}

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


@dataclass(frozen=True, eq=False, slots=True)
class RequestSnapshot:
    """State of a request that generates tokens.

    The sampler's state of a request follows from its prompt, its parameters and its tokens, so it is not stored.

    Attributes:
      num_tokens: Number of tokens that it has generated, at least one.
      snapshot: State after the prompt and all of these tokens except the last.
    """

    num_tokens: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class RequestSnapshotFormat:
    """Format of one model's request snapshots as files.

    Attributes:
      engine: Identity of the model, and of everything that affects the last bits of a state. Other engines refuse the
        file.
      snapshot: Shapes and dtypes of snapshots.
    """

    engine: str
    snapshot: SnapshotFormat

    def export(self, request: RequestSnapshot, name: str, key: bytes | None = None) -> bytes:
        """Returns a request snapshot as a file.

        Args:
          name: Name by which the file is known, so that it cannot be replaced by another file.
          key: Key of the signature; None adds a digest that only detects accidental damage.
        """
        snapshot = request.snapshot
        facts = {
            "engine": self.engine,
            "name": name,
            "tokens": str(request.num_tokens),
            "length": str(snapshot.length),
        }
        arrays = self.snapshot.named(snapshot) | {"window": np.concatenate(snapshot.window)}
        return pack(arrays, facts, key, REQUEST_SNAPSHOT_FORMAT)

    def load(self, data: bytes, name: str, key: bytes | None = None) -> RequestSnapshot:
        """Returns the request snapshot in a file; see `export`.

        Raises:
          StateFileError: The file is broken, belongs to another engine, has another name, or is not signed with the
            key.
        """
        arrays, facts = unpack(data, key, REQUEST_SNAPSHOT_FORMAT)
        if facts.get("name") != name:
            raise StateFileError(f"is another file ({shown(facts.get('name'))})")
        if facts.get("engine") != self.engine:
            raise StateFileError(f"is of another engine ({facts.get('engine')}; this one is {self.engine})")
        num_tokens, length = (parse_length(facts.get(name, "")) for name in ("tokens", "length"))
        if not 0 < num_tokens <= length:
            raise StateFileError(f"has {num_tokens} generated tokens in a history of {length}")
        formats, (first, *edges) = self.snapshot, window_edges(length, self.snapshot.window)
        check_arrays(arrays, {**formats.recurrent, "window": formats.tokens(length - first)})
        blocks = np.split(arrays["window"], [edge - first for edge in edges[:-1]])
        return RequestSnapshot(num_tokens, Snapshot(length, formats.recurrent_of(arrays), tuple(blocks)))

    def example(self) -> RequestSnapshot:
        """Returns a request snapshot of the largest size, with random bytes in it."""
        draw = np.random.default_rng(0)

        def array(shape: tuple[int, ...], dtype: str) -> HostArray:
            return np.frombuffer(draw.bytes(num_bytes((shape, dtype))), dtype).reshape(shape)

        formats = self.snapshot
        recurrent = tuple(array(*each) for each in formats.recurrent.values())
        window = array(*formats.tokens(formats.window))
        return RequestSnapshot(1, Snapshot(formats.window, recurrent, (window,)))


def pack(
    arrays: Mapping[str, HostArray], facts: Mapping[str, str], key: bytes | None = None, name: str | None = None
) -> bytes:
    """Returns the content of a file.

    Args:
      arrays: Arrays by name.
      facts: Further metadata.
      key: Key of the signature; None adds a digest that only detects accidental damage.
      name: Name of the format; None means the format of saved states.
    """
    facts = {
        **facts,
        "format": name or _format_of(arrays),
        "signed": "no" if key is None else "hmac-sha256",
    }
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors ignores strides
    data: bytes = safetensors.numpy.save(whole, metadata={**facts, "digest": _digest(whole, facts, key)})
    return data


def unpack(
    data: bytes, key: bytes | None = None, name: str | None = None
) -> tuple[dict[str, HostArray], dict[str, str]]:
    """Returns the arrays and the metadata of a file; see `pack`.

    Raises:
      StateFileError: The data has another format or version, was changed, or is not signed with the key.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise StateFileError(f"is no whole state file (its header would have {header_bytes} bytes)")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
        facts: dict[str, str] = dict(header["__metadata__"])
        found = {array: _array(tensor) for array, tensor in safetensors.deserialize(data)}  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise StateFileError("is no whole state file: it is cut off, or holds something else") from error
    if facts.get("format") != (expected := name or _format_of(found)):
        raise StateFileError(f"has the format {shown(facts.get('format'))!r}, expected {expected!r}")
    digest = facts.pop("digest", "")
    if key is not None and facts.get("signed") != "hmac-sha256":
        raise StateFileError("is not signed, and this server takes only what its key has signed")
    if not hmac.compare_digest(digest.encode(), _digest(found, facts, key).encode()):
        raise StateFileError("was changed" if key is None else "was changed, or signed with another key")
    return found, facts


def _format_of(arrays: Mapping[str, HostArray]) -> str:
    return INT8_FORMAT if any(array.dtype == np.int8 for array in arrays.values()) else FORMAT


def check_arrays(arrays: Mapping[str, HostArray], expected: Mapping[str, ArrayFormat]) -> None:
    """Checks the arrays of a file.

    Raises:
      StateFileError: An array is missing, has another shape or dtype, or contains a non-finite value.
    """
    for name, wanted in expected.items():
        array = arrays.get(name)
        found = None if array is None else (array.shape, array.dtype.name)
        if found != wanted:
            raise StateFileError(f"has {name} as {found}, expected {wanted}")
        if not is_finite(arrays[name]):
            raise StateFileError(f"has values in {name} that are not finite numbers")


def parse_length(fact: str) -> int:
    """Returns a number of tokens from a file's metadata.

    Raises:
      StateFileError: The text is not a whole number, or is larger than any length.
    """
    if not (fact.isascii() and fact.isdecimal() and len(fact) <= len(str(MAX_TOKENS))):
        raise StateFileError(f"has the length {shown(fact)!r}")
    return int(fact)


def shown(fact: str | None) -> str | None:
    """Returns a file's text, shortened for an error message."""
    return fact if fact is None or len(fact) <= _LONGEST_FACT else f"{fact[:_LONGEST_FACT]}…"


def _array(tensor: Mapping[str, Any]) -> HostArray:
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _digest(arrays: Mapping[str, HostArray], facts: Mapping[str, str], key: bytes | None) -> str:
    mac = hmac.new(_CHECKSUM_KEY if key is None else key, digestmod=hashlib.sha256)
    shapes = {name: [str(arrays[name].dtype), list(arrays[name].shape)] for name in sorted(arrays)}
    mac.update(json.dumps([dict(sorted(facts.items())), shapes]).encode())
    for name in sorted(arrays):
        mac.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return mac.hexdigest()
