"""A model as the server sees it: name, tokenizer, chat format and defaults, without weights."""

import hashlib
import importlib.metadata
import time
from dataclasses import dataclass, field
from pathlib import Path

from ...engine import SIMULATED, EngineConfig, ModelSource
from .chat_template import ChatFormat, load_chat_format
from .generation_defaults import GenerationDefaults, read_defaults
from .special_tokens import check_special_tokens
from .synthetic_tokenizer import synthetic_tokenizer
from .tokenizer import TokenIdsOnly, Tokenizer
from .tokenizer_loading import load_tokenizer, read_tokenizer_config


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything about a served model but its weights.

    Attributes:
      id: Name of the model in the API.
      created: Time at which it was opened, in seconds since 1970.
      fingerprint: Changes with everything that may change outputs: weights, dtype, quantization, seed, versions.
      identity: Is the same wherever the same model is served, whatever the machine, its paths and its versions.
      tokenizer: Tokenizer of the model.
      chat_format: Format of chat prompts.
      defaults: Sampling defaults of the checkpoint.
      max_tokens_limit: Maximum tokens that any request may generate; None sets no limit.
      tokenizer_class: Hugging Face's name of the tokenizer; None if there is none.
      simulated: Device that is simulated, as `--simulate` says; None if the model runs.
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
    end_token_ids: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        end_token_ids = tuple(dict.fromkeys(self.tokenizer.end_token_ids + self.defaults.end_token_ids))
        object.__setattr__(self, "end_token_ids", end_token_ids)


def open_served_model(
    source: ModelSource, config: EngineConfig, name: str | None = None, max_tokens_limit: int | None = None
) -> ServedModel:
    """Loads everything about a model but its weights.

    Args:
      source: Checkpoint, or a config with random weights.
      config: Engine configuration, which the fingerprint depends on.
      name: Name of the model in the API; None takes the source's.
      max_tokens_limit: Maximum tokens that any request may generate.

    Raises:
      CheckpointError: A tokenizer, template or generation_config.json is broken.
    """
    tokenizer = open_tokenizer(source)
    return ServedModel(
        id=name or _default_name(source, config),
        created=int(time.time()),
        fingerprint=_fingerprint(source, config),
        identity=_identity(source, config),
        tokenizer=tokenizer,
        chat_format=load_chat_format(source.directory, tokenizer),
        defaults=read_defaults(source.directory, source.config.vocab_size),
        max_tokens_limit=max_tokens_limit,
        tokenizer_class=_tokenizer_class(source.directory, tokenizer),
        simulated=None if config.simulate is None else config.simulate.text,
    )


def _default_name(source: ModelSource, config: EngineConfig) -> str:
    return source.name if config.simulate is None else f"{source.name}-{SIMULATED}"


def _tokenizer_class(directory: Path | None, tokenizer: Tokenizer) -> str | None:
    """Returns the class that the checkpoint names, or else that of RecurrentGemma's checkpoints."""
    named = None if directory is None else read_tokenizer_config(directory).get("tokenizer_class")
    return named if isinstance(named, str) else "GemmaTokenizer" if tokenizer.has_text else None


def open_tokenizer(source: ModelSource) -> Tokenizer:
    """Returns the checkpoint's tokenizer, or a synthetic one for random weights without a tokenizer.

    Raises:
      CheckpointError: The tokenizer is broken, has another vocabulary, or has other special tokens than the model.
    """
    vocab_size = source.config.vocab_size
    tokenizer: Tokenizer = TokenIdsOnly(vocab_size)
    if source.directory is not None:
        tokenizer = load_tokenizer(source.directory, vocab_size)
        check_special_tokens(source.directory, tokenizer)
    if source.is_random and not tokenizer.has_text:
        return synthetic_tokenizer(vocab_size)
    return tokenizer


def _fingerprint(source: ModelSource, config: EngineConfig) -> str:
    versions = [f"{package} {importlib.metadata.version(package)}" for package in ("roost", "jaxlib")]
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    numbers = (config.dtype, config.seed, config.quantize, *([] if config.kv_dtype is None else [config.kv_dtype]))
    facts = repr((versions, source.config, files, *numbers))
    return ("fp_" if config.simulate is None else f"fp_{SIMULATED}_") + hashlib.sha256(facts.encode()).hexdigest()[:12]


def _identity(source: ModelSource, config: EngineConfig) -> str:
    files = [(path.name, path.stat().st_size) for path in source.files]
    facts = repr((source.config, sorted(files), config.dtype, config.seed, config.quantize))
    return ("model_" if config.simulate is None else f"{SIMULATED}_") + hashlib.sha256(facts.encode()).hexdigest()[:24]
