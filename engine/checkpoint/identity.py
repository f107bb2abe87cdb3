"""Identity of a model by the content of its files; saved states are restored into the same model only."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .source import ModelSource

_WHOLE: Final = 64 * 2**20
"""Maximum bytes of a file that is hashed whole; larger ones are sampled, `_SAMPLES` evenly spread pieces each."""

_SAMPLES: Final = 256
_PIECE: Final = 64 * 2**10
"""Bytes of a sampled piece."""


def model_identity(source: ModelSource, dtype: str, quantize: str | None, seed: int) -> str:
    """Returns 32 hexadecimal digits that identify the weights and dtypes, wherever the files are.

    Args:
      source: The model's config and files. An int8 window makes another model.
      dtype: Dtype of the activations.
      quantize: "int8" if matrices are quantised, or None.
      seed: Seed of random weights.
    """
    drawn = seed if source.is_random else None
    facts: tuple[object, ...] = (source.config, dtype, quantize, drawn)
    if source.config.kv_dtype is not None:
        facts += (source.config.kv_dtype,)
    digest = hashlib.sha256(repr(facts).encode())
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
