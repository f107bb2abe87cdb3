"""Which model it is, by content: what a state that was saved has to agree with. No JAX here."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .source import ModelSource

_WHOLE: Final = 64 * 2**20
"""Files up to this size are read whole; of larger ones `_SAMPLES` pieces of `_PIECE` bytes, evenly spread."""

_SAMPLES: Final = 256
_PIECE: Final = 64 * 2**10


def model_identity(source: ModelSource, dtype: str, quantize: str | None, seed: int) -> str:
    """The same for the same weights in the same types, wherever they lie; 32 hexadecimal digits.

    Args:
      dtype: of the activations.
      seed: of random weights.
    """
    drawn = seed if source.is_random else None
    digest = hashlib.sha256(repr((source.config, dtype, quantize, drawn)).encode())
    for path in source.files:
        for piece in _pieces(path):
            digest.update(piece)
    return digest.hexdigest()[:32]


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name} {size}".encode()
    with path.open("rb") as file:
        if size <= _WHOLE:
            yield file.read()
            return
        for number in range(_SAMPLES):
            file.seek(number * (size - _PIECE) // (_SAMPLES - 1))
            yield file.read(_PIECE)
