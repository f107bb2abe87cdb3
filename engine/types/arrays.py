"""Arrays in host memory, and token ids as bytes."""

from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

type HostArray = np.ndarray[Any, np.dtype[Any]]

type ArrayFormat = tuple[tuple[int, ...], str]
"""Shape and dtype name of an array."""

ID_BYTES: Final = array("i").itemsize
"""Bytes of a token id."""

_SLICE: Final = 65_536
"""Number of token ids that are packed at a time, within a millisecond or two."""


def pack_ids(*parts: Sequence[int]) -> Sequence[int]:
    """Returns the concatenated token ids of all parts, in `ID_BYTES` each. A single packed part is not copied."""
    if len(parts) == 1 and isinstance(parts[0], memoryview):
        return parts[0]
    return ids_in(b"".join(map(id_bytes, parts)))


def ids_in(data: bytes) -> Sequence[int]:
    """Returns the token ids that these bytes hold, without a copy."""
    return memoryview(data).cast("i")


def id_bytes(token_ids: Sequence[int]) -> bytes:
    """Returns token ids as bytes, `ID_BYTES` each in this machine's byte order, without a copy for the result of
    `ids_in`.
    """
    if not isinstance(token_ids, memoryview):
        packed = array("i")
        for start in range(0, len(token_ids), _SLICE):  # so that other threads can run
            packed += array("i", token_ids[start : start + _SLICE])
        return packed.tobytes()
    whole = token_ids.obj
    return whole if isinstance(whole, bytes) and len(whole) == token_ids.nbytes else token_ids.tobytes()
