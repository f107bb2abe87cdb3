"""`generation_config.json`: how a checkpoint wants to be sampled where the request is silent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...engine import CheckpointError


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """
    Attributes:
      temperature, top_p, top_k, min_p, typical_p: as in `SamplingParams`.
      max_tokens: of a chat's answer; None means until the model stops.
      end_token_ids: that the checkpoint names, further to the tokenizer's.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    max_tokens: int | None = None
    end_token_ids: tuple[int, ...] = ()


class _File(BaseModel):
    """The fields that mean something here; null leaves a default in place, as in Hugging Face's own reader."""

    model_config = ConfigDict(strict=True)

    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)
    eos_token_id: int | list[int] | None = None

    def sampling(self) -> dict[str, Any]:
        """What the file says about sampling: nothing where it says not to sample, as clients count on OpenAI's then."""
        if self.do_sample is False:
            return {}
        names = ("temperature", "top_p", "top_k", "min_p", "typical_p")
        named = {name: getattr(self, name) for name in names}
        return {name: value for name, value in named.items() if value is not None}

    def end_token_ids(self) -> tuple[int, ...]:
        match self.eos_token_id:
            case None:
                return ()
            case int(token_id):
                return (token_id,)
            case token_ids:
                return tuple(token_ids)


def read_defaults(directory: Path | None, vocab_size: int) -> GenerationDefaults:
    """Reads a checkpoint's `generation_config.json`; without one, `config.json` may still name the end tokens.

    Raises:
      CheckpointError: a file is broken; the text names it and the field.
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
    return GenerationDefaults(**file.sampling(), max_tokens=file.max_new_tokens, end_token_ids=end_token_ids)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return content
