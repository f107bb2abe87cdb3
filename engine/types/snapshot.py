"""Snapshots: copies on the host of one slot's state, from which a request can be restored; and their files.

A saved state is a token history with a snapshot, which clients save, export, import and resume. A request snapshot is
the state of a request during its generation, from which it continues with the same bits. The prefix cache has neither:
its states come from prefilled prompts. Files are safetensors with metadata, and a digest or signature of both.
"""

import hashlib
import hmac
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, Final

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from .config import MAX_TOKENS, PREFILL_BLOCK
from .errors import StateFileError
from .host_memory import ID_BYTES, ArrayFormat, HostArray, ids_in

SCALE_BYTES: Final = 4
"""Bytes of the float32 scale after each key and value in int8."""


@dataclass(frozen=True, eq=False)
class BlockState:
    """State at a block boundary or at the end of a prompt, as a prefill step returns it.

    Attributes:
      recurrent: Arrays that a state keeps whole, in the order of `SnapshotFormat.recurrent`.
      window: Keys and values of the tokens since the last block boundary, `[n, ...]` with 1 <= n <= `PREFILL_BLOCK`; in
        int8, each has `SCALE_BYTES` more columns with its scale.
      hidden: Activations of the last token, from which logits are computed; only at the end of a prompt.
    """

    recurrent: tuple[HostArray, ...]
    window: HostArray
    hidden: HostArray | None = None

    @cached_property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(is_finite, (*self.recurrent, self.window, *([] if self.hidden is None else [self.hidden]))))


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """One slot's state on the host. Arrays are shared between snapshots and never written to.

    Attributes:
      length: Number of tokens that led to the state.
      recurrent, hidden: See `BlockState`.
      window: Keys and values of the tokens beginning with `first_block`, one array for each block. The last array is
        shorter if `length` is not a block boundary, and the first is if the slot held only part of its block.
    """

    length: int
    recurrent: tuple[HostArray, ...]
    window: tuple[HostArray, ...]
    hidden: HostArray | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(is_finite, self.arrays))

    @property
    def num_bytes(self) -> int:
        """Size of its arrays, including arrays shared with other snapshots."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def arrays(self) -> tuple[HostArray, ...]:
        """All of its arrays."""
        return *self.recurrent, *self.window, *([] if self.hidden is None else [self.hidden])


@dataclass(frozen=True, slots=True)
class SnapshotFormat:
    """Shapes and dtypes of a model's snapshots.

    Attributes:
      window: Number of tokens that attention looks back on.
      recurrent: Arrays that a state keeps whole, by their name in state files.
      token: Keys and values of one token.
      hidden: Activations of the last token.
    """

    window: int
    recurrent: Mapping[str, ArrayFormat]
    token: ArrayFormat
    hidden: ArrayFormat

    @property
    def max_bytes(self) -> int:
        """Size of the largest snapshot."""
        return num_bytes(*self.recurrent.values(), self.hidden, self.blocks(-(-self.window // PREFILL_BLOCK) + 1))

    def blocks(self, count: int) -> ArrayFormat:
        """Returns the format of the keys and values of whole blocks."""
        return self.tokens(count * PREFILL_BLOCK)

    def tokens(self, count: int) -> ArrayFormat:
        """Returns the format of the keys and values of some tokens."""
        shape, dtype = self.token
        return (count, *shape), dtype

    def named(self, snapshot: "Snapshot") -> dict[str, HostArray]:
        """Returns a snapshot's recurrent arrays by name."""
        return dict(zip(self.recurrent, snapshot.recurrent, strict=True))

    def recurrent_of(self, arrays: Mapping[str, HostArray]) -> tuple[HostArray, ...]:
        """Returns a snapshot's recurrent arrays from a file's arrays by name."""
        return tuple(arrays[name] for name in self.recurrent)

    def arrays_of(self, snapshot: "Snapshot") -> dict[str, HostArray]:
        """Returns the arrays of a snapshot's file, by name."""
        return self.named(snapshot) | {"window": np.concatenate(snapshot.window)}

    def snapshot_in(self, arrays: Mapping[str, HostArray], length: int, start: int) -> Snapshot:
        """Returns the snapshot in a file's arrays.

        Args:
          length: Number of tokens that led to the state.
          start: Position of the first token whose keys and values the file has.

        Raises:
          StateFileError: An array is missing, has another shape or dtype, or contains a non-finite value.
        """
        for name, wanted in {**self.recurrent, "window": self.tokens(length - start)}.items():
            array = arrays.get(name)
            found = None if array is None else (array.shape, array.dtype.name)
            if found != wanted:
                raise StateFileError(f"has {name} as {found}, expected {wanted}")
            if not is_finite(arrays[name]):
                raise StateFileError(f"has values in {name} that are not finite numbers")
        edges = range(start - start % PREFILL_BLOCK + PREFILL_BLOCK, length, PREFILL_BLOCK)
        window = np.split(arrays["window"], [edge - start for edge in edges])
        return Snapshot(length, self.recurrent_of(arrays), tuple(window))


def num_bytes(*formats: ArrayFormat) -> int:
    """Returns the size of arrays of these formats."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in formats)


def is_finite(array: HostArray) -> bool:
    """Returns whether an array holds neither NaN nor infinity; for keys and values in int8, whether their scales do
    not.
    """
    if array.dtype == np.int8:
        array = np.ascontiguousarray(array[..., -SCALE_BYTES:]).view(np.float32)
    if array.dtype == ml_dtypes.bfloat16 and array.size:  # by its bits: `np.isfinite` takes ten times as long
        return bool((array.view(np.uint16) & 0x7FFF).max() < 0x7F80)
    return bool(np.isfinite(array).all())


def first_block(length: int, window: int) -> int:
    """Returns the index of the block that holds the oldest of the last `window` tokens."""
    return max(0, length - window) // PREFILL_BLOCK


def chunk_snapshots(last: Snapshot | None, block_states: Sequence[BlockState], window: int) -> list[Snapshot]:
    """Returns one snapshot for each state that prefilling a chunk has produced.

    Args:
      last: Snapshot at the chunk's start; None at the prompt's start. If it is not at a block boundary, the first block
        state is at the next one, or before it.
      block_states: States of the chunk, in order.
      window: Number of tokens that attention looks back on.
    """
    length = 0 if last is None else last.length
    blocks = [] if last is None else list(last.window)
    snapshots = []
    for state in block_states:
        partial = [blocks.pop()] if length % PREFILL_BLOCK else []
        length += len(state.window)
        blocks.append(np.concatenate([*partial, state.window]) if partial else state.window)
        count = -(-length // PREFILL_BLOCK) - first_block(length, window)
        kept = tuple(islice(blocks, len(blocks) - count, None))
        snapshots.append(Snapshot(length, state.recurrent, kept, state.hidden))
    return snapshots


def window_edges(length: int, window: int) -> list[int]:
    """Returns the positions between which a snapshot after `length` tokens has its blocks of keys and values.

    The first is that of the oldest of the last `window` tokens, the last is `length`, and the others are block
    boundaries.
    """
    oldest = max(0, length - window)
    return [oldest, *range(oldest // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK, length, PREFILL_BLOCK), length]


def snapshot_of(length: int, recurrent: tuple[HostArray, ...], window: HostArray) -> Snapshot:
    """Returns the snapshot of a slot.

    Args:
      length: Number of tokens that led to the state.
      recurrent: See `Snapshot`.
      window: Keys and values as a slot holds them: position p is in row p mod the number of rows.
    """
    edges = pairwise(window_edges(length, len(window)))
    blocks = tuple(window[np.arange(start, end) % len(window)] for start, end in edges)
    return Snapshot(length, recurrent, blocks)


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

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F32": np.dtype("float32"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("float16"),
    "I8": np.dtype("int8"),
    "I32": np.dtype("int32"),
    "I64": np.dtype("int64"),
}
"""Dtypes of arrays in files by their names in safetensors."""

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
        arrays = () if self.snapshot is None else self.snapshot.arrays
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
            arrays |= self.snapshot.arrays_of(state.snapshot)
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
        start = first_block(length, self.snapshot.window) * PREFILL_BLOCK
        snapshot = self.snapshot.snapshot_in(arrays, length, start)
        return SavedState(tokens.tobytes(), snapshot, is_imported=is_imported)

    def _tokens(self, arrays: Mapping[str, HostArray]) -> HostArray:
        tokens = arrays.get("tokens", np.zeros(0, np.int32))
        if tokens.dtype != np.int32:
            raise StateFileError(f"has tokens as {tokens.dtype.name}, expected int32")
        if tokens.ndim != 1 or not len(tokens) or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise StateFileError("holds no tokens, or some outside the vocabulary")
        if len(tokens) > MAX_TOKENS:
            raise StateFileError(f"holds {len(tokens)} tokens, more than {MAX_TOKENS}")
        return tokens


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
        return pack(self.snapshot.arrays_of(snapshot), facts, key, REQUEST_SNAPSHOT_FORMAT)

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
        start = max(0, length - self.snapshot.window)
        return RequestSnapshot(num_tokens, self.snapshot.snapshot_in(arrays, length, start))


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
    return safetensors.numpy.save(whole, metadata={**facts, "digest": _digest(whole, facts, key)})


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
    return np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _digest(arrays: Mapping[str, HostArray], facts: Mapping[str, str], key: bytes | None) -> str:
    mac = hmac.new(_CHECKSUM_KEY if key is None else key, digestmod=hashlib.sha256)
    shapes = {name: [str(arrays[name].dtype), list(arrays[name].shape)] for name in sorted(arrays)}
    mac.update(json.dumps([dict(sorted(facts.items())), shapes]).encode())
    for name in sorted(arrays):
        mac.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return mac.hexdigest()
