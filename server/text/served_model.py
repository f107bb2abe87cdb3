"""A model without its weights: name, tokenizer, chat format and defaults."""

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
    """All facts about a served model except its weights.

    Attributes:
      id: Name of the model in the API.
      root: Name of the weights: the adapter's if one was merged, else the model's.
      parent: Name of the model that an adapter was merged into; None without one.
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
    end_token_ids: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        end_token_ids = tuple(dict.fromkeys(self.tokenizer.end_token_ids + self.defaults.end_token_ids))
        object.__setattr__(self, "end_token_ids", end_token_ids)


def open_served_model(
    source: ModelSource, config: EngineConfig, name: str | None = None, max_tokens_limit: int | None = None
) -> ServedModel:
    """Loads everything about a model except its weights.

    Args:
      source: Checkpoint, or a config with random weights.
      config: Engine configuration, which affects the fingerprint.
      name: Name of the model in the API; None uses the source's name.
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
        root=source.adapters[-1].name if source.adapters else source.name,
        parent=source.name if source.adapters else None,
    )


def _default_name(source: ModelSource, config: EngineConfig) -> str:
    name = source.adapters[-1].name if source.adapters else source.name
    return name if config.simulate is None else f"{name}-{SIMULATED}"


def _tokenizer_class(directory: Path | None, tokenizer: Tokenizer) -> str | None:
    """Returns the class that the checkpoint names; otherwise the class of RecurrentGemma's checkpoints."""
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
    facts = repr((versions, source.config, files, *numbers, *source.merged))
    return ("fp_" if config.simulate is None else f"fp_{SIMULATED}_") + hashlib.sha256(facts.encode()).hexdigest()[:12]


def _identity(source: ModelSource, config: EngineConfig) -> str:
    files = [(path.name, path.stat().st_size) for path in source.files]
    facts = repr((source.config, sorted(files), config.dtype, config.seed, config.quantize, *source.merged))
    return ("model_" if config.simulate is None else f"{SIMULATED}_") + hashlib.sha256(facts.encode()).hexdigest()[:24]
