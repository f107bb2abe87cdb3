"""File format of states: safetensors with metadata, and a digest of both that a key turns into a signature."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from ..core.arrays import HostArray
from ..core.errors import StateFileError

FORMAT: Final = "roost-state-1"
INT8_FORMAT: Final = "roost-state-2"
"""Format of files with keys and values in int8."""

MAX_HEADER_BYTES: Final = 16 * 2**10
"""Maximum size of a file's header. Names, shapes and metadata take some 600 bytes; parsed JSON takes up to thirty times
its size."""

_CHECKSUM_KEY: Final = b"roost"
"""Key of the digest in files that are not signed."""

_DTYPES: Final[Mapping[str, Any]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I32": np.int32,
    "I8": np.int8,
}


def pack(arrays: Mapping[str, HostArray], facts: Mapping[str, str], key: bytes | None = None) -> bytes:
    """Returns the content of a file.

    Args:
      arrays: Arrays by name.
      facts: Further metadata.
      key: Key of the signature; None adds a digest that only detects accidents.
    """
    facts = {**facts, "format": _format_of(arrays), "signed": "no" if key is None else "hmac-sha256"}
    data: bytes = safetensors.numpy.save(dict(arrays), metadata={**facts, "digest": _digest(arrays, facts, key)})
    return data


def unpack(data: bytes, key: bytes | None = None) -> tuple[dict[str, HostArray], dict[str, str]]:
    """Returns the arrays and the metadata of a file.

    Raises:
      StateFileError: The data is no such file, has another version, was changed, or is not signed with the key.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise StateFileError(f"is no whole state file (its header would have {header_bytes} bytes)")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
        facts: dict[str, str] = dict(header["__metadata__"])
        found = {name: _array(tensor) for name, tensor in safetensors.deserialize(data)}  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise StateFileError(f"is no whole state file ({type(error).__name__})") from None
    if facts.get("format") != (expected := _format_of(found)):
        raise StateFileError(f"has the format {facts.get('format')!r}, expected {expected!r}")
    digest = facts.pop("digest", "")
    if key is not None and facts.get("signed") != "hmac-sha256":
        raise StateFileError("is not signed, and this server takes only what its key has signed")
    if not hmac.compare_digest(digest.encode(), _digest(found, facts, key).encode()):
        raise StateFileError("was changed" if key is None else "was changed, or signed with another key")
    return found, facts


def _format_of(arrays: Mapping[str, HostArray]) -> str:
    return INT8_FORMAT if any(array.dtype == np.int8 for array in arrays.values()) else FORMAT


def _array(tensor: Mapping[str, Any]) -> HostArray:
    return np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _digest(arrays: Mapping[str, HostArray], facts: Mapping[str, str], key: bytes | None) -> str:
    mac = hmac.new(_CHECKSUM_KEY if key is None else key, digestmod=hashlib.sha256)
    shapes = {name: [str(arrays[name].dtype), list(arrays[name].shape)] for name in sorted(arrays)}
    mac.update(json.dumps([dict(sorted(facts.items())), shapes]).encode())
    for name in sorted(arrays):
        mac.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return mac.hexdigest()
