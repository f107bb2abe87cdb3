"""Sampling defaults of a checkpoint: its `generation_config.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ...engine import SAMPLING_FIELDS, CheckpointError


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Defaults for fields that a request omits.

    Attributes:
      sampling: Fields of `SamplingParams` that the checkpoint sets, by name.
      max_tokens: Maximum number of tokens of a chat's output; None generates until the model stops.
      end_token_ids: End tokens that the checkpoint names in addition to the tokenizer's.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    end_token_ids: tuple[int, ...] = ()


class _KnownFields(BaseModel):
    """Fields in addition to the sampling table. Null keeps the default, as in transformers."""

    model_config = ConfigDict(strict=True)

    do_sample: bool | None = None
    max_new_tokens: int | None = Field(None, ge=1)
    eos_token_id: int | list[int] | None = None

    def sampling(self) -> dict[str, Any]:
        """Returns the sampling fields that the file sets; none with `do_sample: false`, which keeps OpenAI's."""
        if self.do_sample is False:
            return {}
        named = {name: getattr(self, name) for name in _RANGES}
        return {name: value for name, value in named.items() if value is not None}

    def end_token_ids(self) -> tuple[int, ...]:
        match self.eos_token_id:
            case None:
                return ()
            case int(token_id):
                return (token_id,)
            case token_ids:
                return tuple(token_ids)


_RANGES: Final = {name: row.checkpoint for name, row in SAMPLING_FIELDS.items() if row.checkpoint is not None}

_NUMBERS: Final[dict[str, Any]] = {
    name: (SAMPLING_FIELDS[name].kind | None, Field(None, **valid.bounds)) for name, valid in _RANGES.items()
}
"""Pydantic fields of the sampling table, such as `(float | None, Field(None, ge=0))`."""

_File: Final = create_model("_File", __base__=_KnownFields, **_NUMBERS)


def read_defaults(directory: Path | None, vocab_size: int) -> GenerationDefaults:
    """Reads a checkpoint's `generation_config.json`; without one, `config.json` may still name the end tokens.

    Args:
      directory: Folder of the checkpoint; None has no defaults.
      vocab_size: Exclusive upper bound of the end tokens.

    Raises:
      CheckpointError: A file is broken; the text names it and the field.
    """
    if directory is None:
        return GenerationDefaults()
    path = directory / "generation_config.json"
    if path.is_file():
        return _parse(path, _read_object(path), vocab_size)
    path = directory / "config.json"
    if path.is_file():
        return _parse(path, {"eos_token_id": _read_object(path).get("eos_token_id")}, vocab_size)
    return GenerationDefaults()


def _parse(path: Path, content: Mapping[str, Any], vocab_size: int) -> GenerationDefaults:
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {first['loc'][0]}: {first['msg']}") from None
    end_token_ids = file.end_token_ids()
    if any(not 0 <= token_id < vocab_size for token_id in end_token_ids):
        raise CheckpointError(f"{path}: eos_token_id: outside the vocabulary of {vocab_size} tokens")
    return GenerationDefaults(file.sampling(), max_tokens=file.max_new_tokens, end_token_ids=end_token_ids)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return content
