"""Identity of a model by the content of its files. Saved states are only restored into the same model."""

import hashlib

from .content import content_pieces
from .source import ModelSource


def model_identity(source: ModelSource, dtype: str, quantize: str | None, seed: int) -> str:
    """Returns 32 hexadecimal digits that identify the weights and dtypes, independent of the location of the files.

    Args:
      source: The model's config and files. An int8 window, or a merged adapter, makes another model.
      dtype: Dtype of the activations.
      quantize: "int8" if matrices are quantised, or None.
      seed: Seed of random weights.
    """
    drawn = seed if source.is_random else None
    facts: tuple[object, ...] = (source.config, dtype, quantize, drawn)
    if source.config.kv_dtype is not None:
        facts += (source.config.kv_dtype,)
    digest = hashlib.sha256(repr((*facts, *source.merged)).encode())
    for path in source.files:
        for piece in content_pieces(path):
            digest.update(piece)
    return digest.hexdigest()[:32]
