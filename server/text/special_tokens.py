"""Whether a tokenizer's special tokens are those that the model was trained with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...engine import CheckpointError
from .tokenizer import Tokenizer

_RECURRENTGEMMA: Final[Mapping[str, Any]] = {"bos_token_id": 2, "eos_token_id": 1}
"""Of an official checkpoint, which has no file that names them."""

_RECURRENTGEMMA_VOCABULARY: Final = 256_000


def check_special_tokens(directory: Path, tokenizer: Tokenizer) -> None:
    """Compares a tokenizer with the ids that the checkpoint's config names.

    A tokenizer of another model may be small enough for this one's vocabulary, and then nothing but the ids of its
    special tokens gives it away.

    Raises:
      CheckpointError: BOS is another token, or an end token is plain text.
    """
    if not tokenizer.has_text:
        return
    named, file = _named(directory, tokenizer.vocab_size)
    bos_id = named.get("bos_token_id")
    if bos_id is not None and tokenizer.bos_id is not None and tokenizer.bos_id != bos_id:
        raise CheckpointError(
            f"{directory}: the tokenizer's token for the beginning is {tokenizer.bos_id}, but the model's is {bos_id} "
            f"({file}); put the tokenizer there that the model was trained with"
        )
    for end_id in _ids(named.get("eos_token_id")):
        if 0 <= end_id < tokenizer.vocab_size and not tokenizer.is_control(end_id):
            raise CheckpointError(
                f"{directory}: the model ends with token {end_id} ({file}), but in the tokenizer that is plain text, "
                f"{tokenizer.token_text(end_id)!r}; put the tokenizer there that the model was trained with"
            )


def _named(directory: Path, vocab_size: int) -> tuple[Mapping[str, Any], str]:
    """The ids, and the file that names them, which the engine has read before: it is a JSON object."""
    path = directory / "config.json"
    if path.is_file():
        content: Mapping[str, Any] = json.loads(path.read_bytes())
        return content, path.name
    is_official = vocab_size == _RECURRENTGEMMA_VOCABULARY
    return (_RECURRENTGEMMA if is_official else {}), "as in every RecurrentGemma"


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int)]
