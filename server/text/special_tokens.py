"""Checks that a tokenizer's special tokens match the model's config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...engine import CheckpointError
from .tokenizer import Tokenizer

OFFICIAL_SPECIAL_TOKENS: Final[Mapping[str, Any]] = {"bos_token_id": 2, "eos_token_id": 1}
"""Special tokens of an official checkpoint, which has no file that names them."""

OFFICIAL_VOCAB_SIZE: Final = 256_000
"""Vocabulary size of official checkpoints."""


def check_special_tokens(directory: Path, tokenizer: Tokenizer) -> None:
    """Compares a tokenizer's special tokens with the ids in the checkpoint's config.

    Another model's tokenizer may fit this model's vocabulary; then only the ids of its special tokens differ.

    Raises:
      CheckpointError: BOS is another token, or an end token is plain text.
    """
    if not tokenizer.has_text:
        return
    named, file = _named(directory, tokenizer.vocab_size)
    bos_id = named.get("bos_token_id")
    if bos_id is not None and tokenizer.bos_id is not None and tokenizer.bos_id != bos_id:
        raise CheckpointError(
            f"{directory}: the tokenizer's BOS token is {tokenizer.bos_id}, but the model's is {bos_id} "
            f"({file}); replace it by the tokenizer that the model was trained with"
        )
    for end_id in _ids(named.get("eos_token_id")):
        if 0 <= end_id < tokenizer.vocab_size and not tokenizer.is_control(end_id):
            raise CheckpointError(
                f"{directory}: the model's end token is {end_id} ({file}), but in the tokenizer that is plain text, "
                f"{tokenizer.token_text(end_id)!r}; replace it by the tokenizer that the model was trained with"
            )


def _named(directory: Path, vocab_size: int) -> tuple[Mapping[str, Any], str]:
    """Returns the ids and the file that names them. The engine has already checked that it is a JSON object."""
    path = directory / "config.json"
    if path.is_file():
        content: Mapping[str, Any] = json.loads(path.read_bytes())
        return content, path.name
    is_official = vocab_size == OFFICIAL_VOCAB_SIZE
    return (OFFICIAL_SPECIAL_TOKENS if is_official else {}), "as in every RecurrentGemma"


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int)]
