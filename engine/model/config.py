"""Config of a Griffin model, read from a Hugging Face `config.json` or a preset. This module does not import JAX."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ..core.errors import CheckpointError
from ..core.snapshot import SCALE_BYTES

BlockType = Literal["recurrent", "attention"]
type ParamPath = tuple[str | int, ...]
"""Path of a parameter in the model's tree of parameters, such as `("blocks", 0, "mlp", "down", "weight")`."""

_CYCLE: Final[tuple[BlockType, ...]] = ("recurrent", "recurrent", "attention")


@dataclass(frozen=True, slots=True)
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
      quantize: "int8" if the config declares the checkpoint's matrices to be stored in int8.
      kv_dtype: "int8" if the window's keys and values are kept in int8; None for the activations' dtype. It is a choice
        of the engine's settings, which no checkpoint declares, and not part of the config's text form.
    """

    vocab_size: int
    width: int
    mlp_width: int
    num_heads: int
    lru_width: int
    block_types: tuple[BlockType, ...]
    window: int = 2048
    conv_width: int = 4
    logits_soft_cap: float = 30.0
    scale_embeddings: bool = True
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    dtype: str = "float32"
    quantize: Literal["int8"] | None = None
    kv_dtype: str | None = field(default=None, repr=False)

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
    def num_parameters(self) -> int:
        """Number of parameters, with the tied embedding counted once."""
        d, e, f, n = self.width, self.lru_width, self.mlp_width, self.num_heads
        mlp = 2 * (d * f + f) + f * d + d
        recurrent = 2 * (d * e + e) + e * d + d + (self.conv_width + 1) * e + 2 * (e * e // n + e) + e
        attention = d * d + 2 * d * self.head_dim + d * d + d
        blocks = {"recurrent": recurrent, "attention": attention}
        return self.vocab_size * d + sum(2 * d + mlp + blocks[b] for b in self.block_types) + d

    def state_bytes(self, activation_bytes: int) -> int:
        """Returns the bytes of one slot's state: h in float32, all else in the activations' dtype, or rings in int8.

        Args:
          activation_bytes: Itemsize of the activations' dtype.
        """
        recurrent = self.lru_width * 4 + (self.conv_width - 1) * self.lru_width * activation_bytes
        attention = self.window * self.token_bytes(activation_bytes)
        return sum(recurrent if b == "recurrent" else attention for b in self.block_types)

    def token_bytes(self, activation_bytes: int) -> int:
        """Returns the bytes of one token's key and value in an attention layer, scales included."""
        if self.kv_dtype is None:
            return 2 * self.head_dim * activation_bytes
        return 2 * (self.head_dim + SCALE_BYTES)


def cycle(pattern: Sequence[BlockType], depth: int) -> tuple[BlockType, ...]:
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
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    try:
        return config_from_hf(fields)
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
        quantize=None if fields.get("quantization_config") is None else "int8",
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
        "num_key_value_heads": 1,
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
    return fields if config.quantize is None else fields | {"quantization_config": INT8}


INT8: Final[Mapping[str, Any]] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "Embedding"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
"""The `quantization_config` of a checkpoint in int8, as compressed-tensors writes it."""


def _check_supported(fields: Mapping[str, Any], width: int, heads: int) -> None:
    rope = fields.get("rope_parameters") or fields
    fixed: tuple[tuple[str, Any, Any], ...] = (
        ("num_key_value_heads", fields.get("num_key_value_heads"), 1),
        ("head_dim", fields.get("head_dim"), width // max(heads, 1)),
        ("hidden_activation", fields.get("hidden_activation"), "gelu_pytorch_tanh"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), 0.5),
        ("rope_type", rope.get("rope_type"), "default"),
        ("attention_bias", fields.get("attention_bias"), False),
    )
    for name, value, supported in fixed:
        if value is not None and value != supported:
            raise CheckpointError(f"{name} {value!r} is not supported, only {supported!r}")
    quantization = fields.get("quantization_config")
    if quantization is not None and not _is_int8(quantization):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise CheckpointError(
            f"quantization_config: {method!r} in this form is not supported; take the original weights, and "
            "--quantize int8"
        )


def _is_int8(quantization: Any) -> bool:
    try:
        groups = quantization["config_groups"].values()
        mine = INT8["config_groups"]["group_0"]["weights"]
        same_weights = all(
            group["weights"][key] == mine[key]
            for group in groups
            for key in ("num_bits", "type", "symmetric", "strategy")
        )
        return bool(same_weights) and all(quantization[key] == INT8[key] for key in ("quant_method", "format"))
    except (KeyError, TypeError, AttributeError):
        return False


def _block_types(fields: Mapping[str, Any]) -> tuple[BlockType, ...]:
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
