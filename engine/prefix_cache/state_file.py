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

from ..types.arrays import ArrayFormat, HostArray
from ..types.config import MAX_TOKENS
from ..types.errors import StateFileError
from ..types.snapshot import is_finite

FORMAT: Final = "roost-state-1"
INT8_FORMAT: Final = "roost-state-2"
"""Format of files with keys and values in int8."""

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
