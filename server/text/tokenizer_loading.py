"""Loads the tokenizer of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from ...engine.types.errors import CheckpointError
from .piece_tokenizer import HFTokenizer, SentencePieceTokenizer, TokenizerConfig
from .tokenizer import TokenIdsOnly, Tokenizer


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Returns the tokenizer of `tokenizer.model` or `tokenizer.json`, in this order; a `TokenIdsOnly` without either.

    Args:
      directory: Folder of the checkpoint.
      vocab_size: Size of the model's vocabulary.

    Raises:
      CheckpointError: A file is broken or does not fit the model's vocabulary.
    """
    config = _load_tokenizer_config(directory)
    kinds = (("tokenizer.model", SentencePieceTokenizer), ("tokenizer.json", HFTokenizer))
    for name, kind in kinds:
        if (path := directory / name).is_file():
            try:
                return kind(path.read_bytes(), vocab_size, config)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise CheckpointError(f"{path} {error}") from error
    return TokenIdsOnly(vocab_size)


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Returns the content of `tokenizer_config.json`; empty if the file does not exist.

    Raises:
      CheckpointError: The file does not contain a JSON object.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object; download it again")
    return content


def _load_tokenizer_config(directory: Path) -> TokenizerConfig:
    content = read_tokenizer_config(directory)
    declared = content.get("added_tokens_decoder") or {}
    try:
        control = {int(token_id): token["content"] for token_id, token in declared.items() if token["special"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = directory / "tokenizer_config.json"
        raise CheckpointError(f"{path}: added_tokens_decoder is malformed; download it again") from error
    bos, eos = _token_name(content.get("bos_token")), _token_name(content.get("eos_token"))
    return TokenizerConfig(control, bos or "<bos>", eos or "<eos>")


def _token_name(value: Any) -> str | None:
    """Returns the name of a token in tokenizer_config.json, which is a string or an object with `content`."""
    return value.get("content") if isinstance(value, dict) else value
