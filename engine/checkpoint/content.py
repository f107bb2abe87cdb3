"""Content of large files, sampled for hashes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_WHOLE: Final = 64 * 2**20
"""Maximum bytes of a file that is hashed whole; larger ones are sampled, `_SAMPLES` evenly spread pieces each."""

_SAMPLES: Final = 256
_PIECE: Final = 64 * 2**10
"""Bytes of a sampled piece."""


def content_pieces(path: Path) -> Iterator[bytes]:
    """Yields a file's name and size, then its bytes: all of them, or samples of a large file."""
    size = path.stat().st_size
    yield f"{path.name} {size}".encode()
    with path.open("rb") as file:
        if size <= _WHOLE:
            yield file.read()
            return
        for number in range(_SAMPLES):
            file.seek(number * (size - _PIECE) // (_SAMPLES - 1))
            yield file.read(_PIECE)
