"""Sample texts whose activations calibrate a quantisation."""

from itertools import batched
from pathlib import Path
from typing import Final

from ...engine import TEXT_TOKENS, ConfigError, ModelSource
from .tokenizer import load_tokenizer

DEFAULT: Final = "default"
"""Name of the text that comes with Roost."""

_DEFAULT_FILE: Final = Path(__file__).parents[2] / "configs" / "calibration" / "text.txt"

_MIN_TEXTS, _MAX_TEXTS = 8, 64
"""Bounds of the number of texts: fewer say little of a matrix's inputs, and more take memory and time."""


def sample_texts(source: ModelSource, file: str) -> list[list[int]]:
    """Returns token ids of a file's first texts, of `TEXT_TOKENS` each with BOS. Names of control tokens become those.

    Args:
      source: The model, which must have a tokenizer.
      file: Path of a file in UTF-8, or `DEFAULT`.

    Raises:
      ConfigError: The file cannot be read or is too short, or the model has no tokenizer.
      CheckpointError: The tokenizer is broken.
    """
    tokenizer = None if source.directory is None else load_tokenizer(source.directory, source.config.vocab_size)
    if tokenizer is None or not tokenizer.has_text:
        raise ConfigError(
            f"calibrate takes a model with a tokenizer; put tokenizer.model beside {source.name}'s weights"
        )
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    size = TEXT_TOKENS - len(first)
    ids = tokenizer.encode(_read(file))
    if len(ids) < _MIN_TEXTS * size:
        raise ConfigError(f"calibrate takes at least {_MIN_TEXTS * size} tokens of text, and {file} has {len(ids)}")
    whole = ids[: min(len(ids) // size, _MAX_TEXTS) * size]
    return [[*first, *text] for text in batched(whole, size)]


def _read(file: str) -> str:
    path = _DEFAULT_FILE if file == DEFAULT else Path(file)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"calibrate takes text in UTF-8, and {file} is not") from None
    except OSError as error:
        raise ConfigError(f"calibrate cannot read {file} ({error.strerror})") from None
