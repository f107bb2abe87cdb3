"""Shapes of the measured models; all weights are random. Requires the standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Griffin:
    """A RecurrentGemma model.

    Attributes:
      mlp_width: Width of one half of the MLP, half of Hugging Face's `intermediate_size`.
    """

    name: str
    width: int
    depth: int
    heads: int
    window: int
    vocab_size: int

    @property
    def mlp_width(self) -> int:
        return 3 * self.width

    @property
    def block_types(self) -> list[str]:
        """Type of every layer."""
        return [("recurrent", "recurrent", "attention")[layer % 3] for layer in range(self.depth)]

    @property
    def num_parameters(self) -> int:
        """Number of all parameters, with the tied embedding once."""
        d, f, n = self.width, self.mlp_width, self.heads
        mlp = 2 * (d * f + f) + f * d + d
        gates = 2 * (d * d // n + d) + d
        recurrent = 3 * (d * d + d) + 5 * d + gates
        attention = 2 * d * d + 2 * d * (d // n) + d
        blocks = sum(recurrent if block == "recurrent" else attention for block in self.block_types)
        return self.vocab_size * d + blocks + self.depth * (mlp + 2 * d) + d

    def hf_config(self, dtype: str) -> Mapping[str, Any]:
        """Returns Hugging Face's `config.json`."""
        return {
            "architectures": ["RecurrentGemmaForCausalLM"],
            "model_type": "recurrent_gemma",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": 2 * self.mlp_width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "num_key_value_heads": 1,
            "head_dim": self.width // self.heads,
            "lru_width": self.width,
            "attention_window_size": self.window,
            "conv1d_width": 4,
            "logits_soft_cap": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-06,
            "attention_bias": False,
            "block_types": ["recurrent", "recurrent", "attention"],
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "torch_dtype": dtype,
        }


@dataclass(frozen=True)
class Llama:
    """A transformer of about the size of a Griffin, for peers without RecurrentGemma."""

    name: str
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    vocab_size: int
    max_length: int

    @property
    def num_parameters(self) -> int:
        """Number of all parameters, with the tied embedding once."""
        d = self.width
        attention = 2 * d * self.heads * self.head_size + 2 * d * self.kv_heads * self.head_size
        return self.vocab_size * d + self.depth * (attention + 3 * d * self.mlp_width + 2 * d) + d

    def hf_config(self, dtype: str) -> Mapping[str, Any]:
        """Returns Hugging Face's `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": self.max_length,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "torch_dtype": dtype,
        }


RESERVED = 4
"""Number of ids that vocabularies reserve: padding, end, beginning, unknown."""


def vocabulary(size: int) -> list[str]:
    """Returns a text for every token id, for servers that answer in text."""
    return ["<pad>", "</s>", "<s>", "<unk>", *(f" w{number}" for number in range(RESERVED, size))]


def hf_tokenizer(size: int) -> Mapping[str, Any]:
    """Returns Hugging Face's `tokenizer.json` for the vocabulary."""
    words = vocabulary(size)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": word, **flags} for number, word in enumerate(words[:RESERVED])],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }


SMALL = Griffin("small", 768, 12, 6, 2048, 32_000)
TWO_B = Griffin("2b", 2560, 26, 10, 2048, 256_000)
NANO = Griffin("nano", 256, 6, 4, 256, 4096)
GRIFFINS = {model.name: model for model in (SMALL, TWO_B, NANO)}

LLAMA = Llama("llama-small", 768, 12, 6, 2, 128, 2400, 32_000, 4096)
"""Model within 0.2% of `SMALL`'s parameters; the MLP's width is a multiple of 32 for llama.cpp's Q8_0."""

FOUR_BITS = ("Q4_0", "Q4_K_M")
"""llama.cpp's types that int4 is compared with."""

FOUR_BIT_LLAMA = replace(LLAMA, mlp_width=2304)
"""Model of 98 % of `LLAMA`'s parameters, whose widths are multiples of 256 for llama.cpp's K-quants."""
