"""Config of a Griffin model, read from a Hugging Face `config.json` or a preset. This module does not import JAX.

Its `quantization_config` is as compressed-tensors writes it: int8 is the format `int-quantized`, int4 the format
`pack-quantized`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from ..types.errors import CheckpointError

type Params = Any
"""Parameters of a model as a pytree of arrays."""

type ParamPath = tuple[str | int, ...]
"""Path of a parameter in the model's tree of parameters, such as `("blocks", 0, "mlp", "down", "weight")`."""

_CYCLE: Final[tuple[str, ...]] = ("recurrent", "recurrent", "attention")

INT4_GROUP_SIZE: Final = 64
"""Largest number of inputs that share a scale in matrices that Roost quantises to int4."""

_MATRICES_OF_WIDTH: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "linear_x", "linear_y", "gate_proj", "up_proj")
"""Modules whose matrices have D inputs."""

_ACTIVATIONS: Final = ("gelu_pytorch_tanh", "gelu_fast", "gelu_new")
"""Names of one function: the GELU with a tanh."""


@dataclass(frozen=True, slots=True, repr=False)
class ModelConfig:
    """Sizes and constants of a Griffin model; `docs/reference/model.md` has the equations.

    Attributes:
      vocab_size: V, rows of the tied embedding.
      width: D, width of the residual stream.
      mlp_width: F, width of the MLP's gate and of its value, half of Hugging Face's `intermediate_size`.
      num_heads: N, number of attention heads and of diagonal blocks of the RG-LRU's gates.
      lru_width: E, width of the RG-LRU; a multiple of N.
      block_types: Temporal block of every layer.
      window: W, attention window; a query sees W + 1 keys, its own included.
      conv_width: K, taps of the causal convolution.
      logits_soft_cap: c in c * tanh(logits / c); 0 means no cap.
      scale_embeddings: Whether embeddings are multiplied by sqrt(D), rounded to bfloat16.
      rope_theta: Base of the RoPE frequencies.
      rms_norm_eps: Constant added to the mean square in RMSNorm.
      dtype: Dtype in which the config declares the checkpoint to be stored.
      quantize: Format in which the config declares the checkpoint's matrices to be stored; None if not quantised.
      kv_dtype: "int8" if the window's keys and values are kept in int8; None for the activations' dtype. It is a choice
        of the engine's settings, which no checkpoint declares, and not part of the config's text form.
      num_key_heads: G, number of key heads, and of value heads; a divisor of N. N / G query heads share each.
      int4_group_size: Largest number of inputs that share a scale in int4. A matrix takes the largest power of two up
        to that, which divides its inputs.
    """

    vocab_size: int
    width: int
    mlp_width: int
    num_heads: int
    lru_width: int
    block_types: tuple[str, ...]
    window: int = 2048
    conv_width: int = 4
    logits_soft_cap: float = 30.0
    scale_embeddings: bool = True
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    dtype: str = "float32"
    quantize: Literal["int8", "int4"] | None = None
    kv_dtype: str | None = field(default=None, repr=False)
    num_key_heads: int = 1
    int4_group_size: int = INT4_GROUP_SIZE

    def __repr__(self) -> str:
        """Returns the text form, of which identities of models are made: without a field that all models once lacked,
        where it has the value of those."""
        shown = {each.name: getattr(self, each.name) for each in fields(self) if each.repr}
        for name, value in (("num_key_heads", 1), ("int4_group_size", INT4_GROUP_SIZE)):
            if shown[name] == value:
                del shown[name]
        return f"ModelConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "mlp_width", "num_heads", "lru_width", "window"):
            if getattr(self, name) < 1:
                raise CheckpointError(f"config: {name} must be at least 1, got {getattr(self, name)}")
        if self.conv_width < 2:
            raise CheckpointError(f"config: conv1d_width must be at least 2, got {self.conv_width}")
        if not self.block_types:
            raise CheckpointError("config: num_hidden_layers must be at least 1")
        if self.width % self.num_heads or self.head_dim % 4:
            raise CheckpointError(
                f"config: hidden_size {self.width} must be num_attention_heads ({self.num_heads}) times a "
                "head size that is a multiple of 4"
            )
        if self.num_key_heads < 1 or self.num_heads % self.num_key_heads:
            raise CheckpointError(
                f"config: num_key_value_heads must be a divisor of num_attention_heads ({self.num_heads}), "
                f"got {self.num_key_heads}"
            )
        if self.lru_width % self.num_heads:
            raise CheckpointError(
                f"config: lru_width {self.lru_width} must be a multiple of num_attention_heads ({self.num_heads})"
            )

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.block_types)

    @property
    def head_dim(self) -> int:
        """d, width of an attention head."""
        return self.width // self.num_heads

    @property
    def key_width(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.num_key_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Number of parameters, with the tied embedding counted once."""
        d, e, f, n = self.width, self.lru_width, self.mlp_width, self.num_heads
        mlp = 2 * (d * f + f) + f * d + d
        recurrent = 2 * (d * e + e) + e * d + d + (self.conv_width + 1) * e + 2 * (e * e // n + e) + e
        attention = d * d + 2 * d * self.key_width + d * d + d
        blocks = {"recurrent": recurrent, "attention": attention}
        return self.vocab_size * d + sum(2 * d + mlp + blocks[b] for b in self.block_types) + d


def cycle(pattern: Sequence[str], depth: int) -> tuple[str, ...]:
    """Returns the first `depth` layers of `pattern`, repeated."""
    return tuple(pattern[i % len(pattern)] for i in range(depth))


PRESETS: Final[Mapping[str, ModelConfig]] = {
    "2b": ModelConfig(256_000, 2560, 7680, 10, 2560, cycle(_CYCLE, 26), dtype="bfloat16"),
    "9b": ModelConfig(256_000, 4096, 12288, 16, 4096, cycle(_CYCLE, 38), dtype="bfloat16"),
}


def read_config(path: Path) -> ModelConfig:
    """Reads a Hugging Face `config.json`, under any name.

    Raises:
      CheckpointError: The file is missing, is not JSON, is of another architecture, or lacks a field.
    """
    return read_fields(path, config_from_hf)


def read_fields[Config](path: Path, parse: Callable[[Mapping[str, Any]], Config], hint: str = "") -> Config:
    """Reads a JSON object from a file and parses its fields.

    Args:
      path: The file.
      parse: Function that raises `CheckpointError` for fields that cannot be used.
      hint: End of the message for a file that cannot be read.

    Raises:
      CheckpointError: The file is missing or not a JSON object, or `parse` refuses it; the message names the file.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    try:
        return parse(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def config_from_hf(fields: Mapping[str, Any]) -> ModelConfig:
    """Returns the config that the fields of a Hugging Face config describe, in any of their known spellings.

    Raises:
      CheckpointError: The architecture is another one, or a field is missing or of the wrong type.
    """
    if fields.get("model_type") != "recurrent_gemma":
        raise CheckpointError(f"model_type must be 'recurrent_gemma', got {fields.get('model_type')!r}")
    width, heads = _integer(fields, "hidden_size"), _integer(fields, "num_attention_heads")
    _check_supported(fields, width, heads)
    rope = fields.get("rope_parameters") or fields
    declared = fields.get("quantization_config")
    stored = StoredQuantization(None) if declared is None else read_quantization(declared)
    intermediate = _integer(fields, "intermediate_size")
    if intermediate % 2:
        raise CheckpointError(f"intermediate_size must be even (twice the MLP's width), got {intermediate}")
    return ModelConfig(
        vocab_size=_integer(fields, "vocab_size"),
        width=width,
        mlp_width=intermediate // 2,
        num_heads=heads,
        lru_width=_integer(fields, "lru_width", default=width),
        block_types=_block_types(fields),
        window=_integer(fields, "attention_window_size", default=2048),
        conv_width=_integer(fields, "conv1d_width", default=4),
        logits_soft_cap=_number(fields, "logits_soft_cap", 30.0),
        scale_embeddings=bool(fields.get("embeddings_scale_by_sqrt_dim", True)),
        rope_theta=_number(rope, "rope_theta", 10000.0),
        rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
        dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
        quantize=stored.name,
        num_key_heads=_integer(fields, "num_key_value_heads", default=heads),
        int4_group_size=stored.group_size,
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields of a Hugging Face config, with the token ids of RecurrentGemma's vocabulary."""
    fields = {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": 2 * config.mlp_width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_heads,
        "head_dim": config.head_dim,
        "lru_width": config.lru_width,
        "_block_types": list(config.block_types),
        "block_types": list(config.block_types),
        "attention_window_size": config.window,
        "conv1d_width": config.conv_width,
        "logits_soft_cap": config.logits_soft_cap,
        "embeddings_scale_by_sqrt_dim": config.scale_embeddings,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": 0.5,
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": config.dtype,
    }
    return fields if config.quantize is None else fields | {"quantization_config": _quantization_fields(config)}


def _check_supported(fields: Mapping[str, Any], width: int, heads: int) -> None:
    rope = fields.get("rope_parameters") or fields
    fixed: tuple[tuple[str, Any, Any], ...] = (
        ("head_dim", fields.get("head_dim"), width // max(heads, 1)),
        ("tie_word_embeddings", fields.get("tie_word_embeddings"), True),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), 0.5),
        ("rope_type", rope.get("rope_type"), "default"),
        ("attention_bias", fields.get("attention_bias"), False),
    )
    for name, value, supported in fixed:
        if value is not None and value != supported:
            raise CheckpointError(f"{name} {value!r} is not supported, only {supported!r}")
    if (activation := fields.get("hidden_activation")) not in (None, *_ACTIVATIONS):
        raise CheckpointError(f"hidden_activation {activation!r} is not supported, only {', '.join(_ACTIVATIONS)}")


def _block_types(fields: Mapping[str, Any]) -> tuple[str, ...]:
    pattern = fields.get("block_types") or fields.get("_block_types") or _CYCLE
    if not isinstance(pattern, list | tuple) or any(b not in ("recurrent", "attention") for b in pattern):
        raise CheckpointError(f"block_types must list 'recurrent' and 'attention', got {pattern!r}")
    return cycle(pattern, _integer(fields, "num_hidden_layers"))


def _integer(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{name} must be a whole number, got {value!r}")
    return value


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if value is None:
        return 0.0 if name == "logits_soft_cap" else default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CheckpointError(f"{name} must be a number, got {value!r}")
    return float(value)


_METHOD: Final = "compressed-tensors"

_FORMATS: Final[Mapping[str, Literal["int8", "int4"]]] = {"int-quantized": "int8", "pack-quantized": "int4"}
"""Formats of matrices by the names of compressed-tensors."""

type _Supported = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""Fields of a group's weights: default, and supported values."""

_WEIGHTS: Final[_Supported] = {
    "type": ("int", ("int",)),
    "symmetric": (True, (True,)),
    "dynamic": (False, (False,)),
    "actorder": (None, (None, False, "weight", "static")),  # these leave the columns in their order
}
_IN_4_BITS: Final[_Supported] = {
    "num_bits": (None, (4,)),
    "strategy": ("group", ("group",)),
    "group_size": (None, (32, 64, 128)),
}
_IN_8_BITS: Final[_Supported] = {"num_bits": (None, (8,)), "strategy": (None, ("channel",))}


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """Format in which a checkpoint's matrices are stored.

    Attributes:
      name: Name of the format; None if the matrices are not quantised.
      group_size: Largest number of inputs that share a scale in int4.
    """

    name: Literal["int8", "int4"] | None
    group_size: int = INT4_GROUP_SIZE


def read_quantization(fields: Any) -> StoredQuantization:
    """Returns the format that a `quantization_config` describes, after checking everything that changes products.

    Raises:
      CheckpointError: It is another format, or has a field that products or files here do not support.
    """
    if not isinstance(fields, Mapping):
        raise _refused("", fields)
    if fields.get("quant_method") != _METHOD:
        raise _refused("quant_method ", fields.get("quant_method"), _METHOD)
    if (form := fields.get("format")) not in tuple(_FORMATS):
        raise _refused("format ", form, " and ".join(f"{theirs} in {ours}" for theirs, ours in _FORMATS.items()))
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if fields.get(key):
            raise _refused(f"{key} ", fields[key], "null")
    groups = fields.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _refused("config_groups ", groups, "groups of matrices")
    sizes = [_check_group(f"config_groups.{key}", group, form) for key, group in groups.items()]
    if _FORMATS[form] == "int8":
        return StoredQuantization("int8")
    if not any(sizes):
        raise _refused("num_bits ", 8, "4 for matrices of layers")
    return StoredQuantization("int4", max(size for size in sizes if size is not None))


def _check_group(name: str, group: Any, form: str) -> int | None:
    """Returns the group size of a config group in 4 bits; None for one in 8 bits."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise _refused(f"{name}.weights ", weights, "an object")
    is_packed, bits = _FORMATS[form] == "int4", weights.get("num_bits")
    for key, supported in (("input_activations", (None,)), ("output_activations", (None,)), ("format", (None, form))):
        if group.get(key) not in supported and (is_packed or key == "format"):
            raise _refused(f"{name}.{key} ", group[key], _shown(supported))
    for key, (default, values) in {**_WEIGHTS, **(_IN_4_BITS if is_packed and bits != 8 else _IN_8_BITS)}.items():
        if weights.get(key, default) not in values:
            raise _refused(f"{name}.weights.{key} ", weights.get(key, default), _shown(values))
    return int(weights["group_size"]) if is_packed and bits != 8 else None


def _quantization_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the `quantization_config` of a checkpoint; in int4, its embedding is in 8 bits."""
    whole = {"quant_method": _METHOD, "format": next(key for key, name in _FORMATS.items() if name == config.quantize)}
    if config.quantize == "int8":
        tokens = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        group = _group(["Linear", "Embedding"], tokens, num_bits=8, strategy="channel")
        return {**whole, "config_groups": {"group_0": group}}
    inputs = dict.fromkeys(_MATRICES_OF_WIDTH, config.width)
    inputs |= {"linear_out": config.lru_width, "down_proj": config.mlp_width}
    modules: dict[int, list[str]] = {}
    for name, count in inputs.items():
        modules.setdefault(math.gcd(count, config.int4_group_size), []).append(f"re:.*[.]{name}$")
    groups = [_group(names, num_bits=4, strategy="group", group_size=size) for size, names in modules.items()]
    groups.append(_group(["Embedding"], num_bits=8, strategy="channel", group_size=None))
    return {
        **whole,
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "ignore": [],
    }


def _group(targets: list[str], input_activations: Mapping[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    whole = {"type": "int", "symmetric": True, "dynamic": False, **weights}
    return {
        "targets": targets,
        "weights": whole,
        "input_activations": input_activations,
        "output_activations": None,
    }


def _shown(values: tuple[Any, ...]) -> str:
    return " or ".join("null" if value is None else str(value) for value in values)


def _refused(field: str, value: Any, supported: str | None = None) -> CheckpointError:
    only = "" if supported is None else f", only {supported}"
    return CheckpointError(
        f"quantization_config: {field}{value!r} is not supported{only}; take the original weights, and --quantize int8 "
        "or int4"
    )
