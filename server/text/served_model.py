"""A model without its weights: name, tokenizer, chat format, special tokens and sampling defaults."""

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, Field, ValidationError, create_model

from ...engine import SAMPLING_FIELDS, SIMULATED, CheckpointError, EngineConfig, ModelSource
from .chat_format import ChatFormat
from .chat_template import load_chat_format
from .synthetic_tokenizer import synthetic_tokenizer
from .tokenizer import TokenIdsOnly, Tokenizer, load_tokenizer, read_object


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


@dataclass(frozen=True, slots=True)
class ServedModel:
    """All facts about a served model except its weights.

    Attributes:
      id: Name of the model in responses.
      root: Name of the weights: the adapter's if one was merged, else the model's.
      parent: Name of the model that an adapter was merged into; None without one.
      aliases: Further names of the model in requests.
      created: Time at which it was opened, in seconds since 1970.
      fingerprint: Changes with everything that may change outputs: weights, dtype, quantization, seed, versions.
      identity: Identifies the model across machines, paths and versions.
      tokenizer: Tokenizer of the model.
      chat_format: Format of chat prompts.
      defaults: Sampling defaults of the checkpoint.
      max_tokens_limit: Maximum tokens that any request may generate; None sets no limit.
      tokenizer_class: Hugging Face's name of the tokenizer; None if there is none.
      simulated: Simulated device, from `--simulate`; None if the model runs.
      end_token_ids: Tokens that end a generation by default.
    """

    id: str
    created: int
    fingerprint: str
    tokenizer: Tokenizer
    chat_format: ChatFormat
    defaults: GenerationDefaults
    max_tokens_limit: int | None = None
    tokenizer_class: str | None = None
    identity: str = ""
    simulated: str | None = None
    root: str = ""
    parent: str | None = None
    aliases: tuple[str, ...] = ()
    end_token_ids: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        end_token_ids = tuple(dict.fromkeys(self.tokenizer.end_token_ids + self.defaults.end_token_ids))
        object.__setattr__(self, "end_token_ids", end_token_ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model in requests, beginning with its id."""
        return (self.id, *self.aliases)


def open_served_model(
    source: ModelSource,
    config: EngineConfig,
    names: Sequence[str] | None = None,
    max_tokens_limit: int | None = None,
) -> ServedModel:
    """Loads everything about a model except its weights.

    Args:
      source: Checkpoint, or a config with random weights.
      config: Engine configuration, which affects the fingerprint.
      names: Names of the model in the API, of which responses have the first; None uses the source's name.
      max_tokens_limit: Maximum tokens that any request may generate.

    Raises:
      CheckpointError: A tokenizer, template or generation_config.json is broken.
    """
    tokenizer = open_tokenizer(source)
    root = source.adapters[-1].name if source.adapters else source.name
    model_id, *aliases = dict.fromkeys(names or [root if config.simulate is None else f"{root}-{SIMULATED}"])
    return ServedModel(
        id=model_id,
        created=int(time.time()),
        fingerprint=_fingerprint(source, config),
        identity=_identity(source, config),
        tokenizer=tokenizer,
        chat_format=load_chat_format(source.directory, tokenizer),
        defaults=read_defaults(source.directory, source.config.vocab_size),
        max_tokens_limit=max_tokens_limit,
        tokenizer_class=_tokenizer_class(source.directory, tokenizer),
        simulated=None if config.simulate is None else config.simulate.text,
        root=root,
        parent=source.name if source.adapters else None,
        aliases=tuple(aliases),
    )


def _tokenizer_class(directory: Path | None, tokenizer: Tokenizer) -> str | None:
    """Returns the class that the checkpoint names; otherwise the class of RecurrentGemma's checkpoints."""
    named = None if directory is None else read_object(directory / "tokenizer_config.json").get("tokenizer_class")
    return named if isinstance(named, str) else "GemmaTokenizer" if tokenizer.has_text else None


def open_tokenizer(source: ModelSource) -> Tokenizer:
    """Returns the checkpoint's tokenizer, or a synthetic one for random weights without a tokenizer.

    Raises:
      CheckpointError: The tokenizer is broken, or has another vocabulary.
    """
    vocab_size = source.config.vocab_size
    tokenizer: Tokenizer = TokenIdsOnly(vocab_size)
    if source.directory is not None:
        tokenizer = load_tokenizer(source.directory, vocab_size)
    if source.is_random and not tokenizer.has_text:
        return synthetic_tokenizer(vocab_size)
    return tokenizer


def _fingerprint(source: ModelSource, config: EngineConfig) -> str:
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("roost", "jaxlib")]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    numbers = (config.dtype, config.seed, config.quantize, *([] if config.kv_dtype is None else [config.kv_dtype]))
    facts = repr((versions, source.config, files, *numbers, *source.merged))
    return ("fp_" if config.simulate is None else f"fp_{SIMULATED}_") + hashlib.sha256(facts.encode()).hexdigest()[:12]


def _identity(source: ModelSource, config: EngineConfig) -> str:
    files = [(path.name, path.stat().st_size) for path in source.files]
    facts = repr((source.config, sorted(files), config.dtype, config.seed, config.quantize, *source.merged))
    return ("model_" if config.simulate is None else f"{SIMULATED}_") + hashlib.sha256(facts.encode()).hexdigest()[:24]


_NUMBERS: Final[dict[str, Any]] = {
    name: (row.kind | None, Field(None, **row.checkpoint.bounds))
    for name, row in SAMPLING_FIELDS.items()
    if row.checkpoint is not None
}
"""Pydantic fields of the sampling table, such as `(float | None, Field(None, ge=0))`."""

_File: Final = create_model(
    "_File",
    __config__=ConfigDict(strict=True),
    do_sample=(bool | None, None),
    max_new_tokens=(int | None, Field(None, ge=1)),
    eos_token_id=(int | list[int] | None, None),
    **_NUMBERS,
)
"""Fields of `generation_config.json`. Null keeps the default, as in transformers."""


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
        return _parse(path, read_object(path), vocab_size)
    path = directory / "config.json"
    return _parse(path, {"eos_token_id": read_object(path).get("eos_token_id")}, vocab_size)


def _parse(path: Path, content: Mapping[str, Any], vocab_size: int) -> GenerationDefaults:
    try:
        fields = _File.model_validate(content).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(f"{path}: {first['loc'][0]}: {first['msg']}") from None
    end = fields.get("eos_token_id", ())
    end_token_ids = (end,) if isinstance(end, int) else tuple(end)
    if any(not 0 <= token_id < vocab_size for token_id in end_token_ids):
        raise CheckpointError(f"{path}: eos_token_id: outside the vocabulary of {vocab_size} tokens")
    is_greedy = fields.get("do_sample") is False  # which keeps OpenAI's defaults
    sampling = {} if is_greedy else {name: fields[name] for name in _NUMBERS if name in fields}
    return GenerationDefaults(sampling, fields.get("max_new_tokens"), end_token_ids)
