"""Hugging Face configs in all their spellings, the presets' sizes, and errors that name the file and the field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from roost.engine.model.config import PRESETS, ModelConfig, config_from_hf, config_to_hf, cycle, read_config
from roost.engine.model.state import state_bytes, window_bytes
from roost.engine.types.errors import CheckpointError

TINY_A = Path(__file__).parents[2] / "golden" / "tiny-a" / "hf"

FIELDS: dict[str, Any] = {
    "model_type": "recurrent_gemma",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
}
"""Minimal fields of a config."""


def changed(**fields: Any) -> ModelConfig:
    return config_from_hf(FIELDS | fields)


@pytest.mark.parametrize("name", ["config.json", "config.transformers-5.json"])
def test_both_ways_of_writing_the_golden_config_are_read(name: str) -> None:
    config = read_config(TINY_A / name)
    assert (config.vocab_size, config.width, config.mlp_width, config.num_heads) == (320, 64, 192, 4)
    assert config.block_types == ("recurrent", "recurrent", "attention") * 2
    assert (config.lru_width, config.window, config.head_dim, config.rope_theta) == (64, 16, 16, 10000.0)
    assert config.num_parameters == 325_952
    assert config.dtype == ("bfloat16" if name == "config.json" else "float32")


def test_fields_left_out_have_the_published_values() -> None:
    config = changed()
    assert (config.window, config.conv_width, config.lru_width) == (2048, 4, 64)
    assert (config.logits_soft_cap, config.rope_theta, config.rms_norm_eps) == (30.0, 10000.0, 1e-6)
    assert config.scale_embeddings
    assert config.dtype == "float32"


def test_the_blocks_are_a_cycle_under_either_name() -> None:
    """2B has `_block_types`, 9B `block_types`; with both, `block_types` counts."""
    cyclic, pattern = ("recurrent", "attention", "recurrent", "attention"), ["recurrent", "attention"]
    assert changed(_block_types=pattern, num_hidden_layers=4).block_types == cyclic
    assert changed(block_types=pattern, num_hidden_layers=4).block_types == cyclic
    assert changed(block_types=pattern, _block_types=["recurrent"], num_hidden_layers=4).block_types == cyclic
    assert changed(block_types=list(cyclic), num_hidden_layers=4).block_types == cyclic
    assert changed(num_hidden_layers=4).block_types == ("recurrent", "recurrent", "attention", "recurrent")


def test_the_intermediate_size_is_that_of_both_halves() -> None:
    assert changed(intermediate_size=100).mlp_width == 50


@pytest.mark.parametrize("nested", [True, False])
def test_rope_may_stand_in_its_own_object(nested: bool) -> None:
    rope = {"rope_theta": 500000.0, "partial_rotary_factor": 0.5}
    assert changed(**({"rope_parameters": rope} if nested else rope)).rope_theta == 500000.0


def test_null_and_zero_have_their_meanings() -> None:
    assert changed(lru_width=None).lru_width == 64
    assert changed(lru_width=96).lru_width == 96
    assert changed(logits_soft_cap=None).logits_soft_cap == changed(logits_soft_cap=0).logits_soft_cap == 0.0
    assert not changed(embeddings_scale_by_sqrt_dim=False).scale_embeddings
    assert changed(torch_dtype="float16", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^{field} must be"):
        config_from_hf({name: value for name, value in FIELDS.items() if name != field})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gemma2"}, "model_type"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads (4), got 3"),
        ({"num_key_value_heads": 8}, "num_key_value_heads must be a divisor of num_attention_heads (4), got 8"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a divisor of num_attention_heads (4), got 0"),
        ({"num_key_value_heads": "1"}, "num_key_value_heads must be a whole number, got '1'"),
        ({"head_dim": 32}, "head_dim 32 is not supported, only 16"),
        ({"hidden_activation": "silu"}, "hidden_activation 'silu' is not supported, only gelu_pytorch_tanh, gelu_fast"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False is not supported, only True"),
        ({"attention_bias": True}, "attention_bias"),
        ({"partial_rotary_factor": 1.0}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type"),
        ({"intermediate_size": 385}, "intermediate_size must be even"),
        ({"block_types": ["recurrent", "mamba"]}, "block_types"),
        ({"block_types": "recurrent"}, "block_types"),
        ({"vocab_size": "320"}, "vocab_size must be a whole number, got '320'"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"num_attention_heads": 0}, "num_heads must be at least 1"),
        ({"num_attention_heads": 5}, "hidden_size 64 must be num_attention_heads"),
        ({"num_attention_heads": 32}, "multiple of 4"),
        ({"lru_width": 66}, "lru_width 66 must be a multiple"),
        ({"conv1d_width": 1}, "conv1d_width"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_in_one_line(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "my-config.json"
    path.write_text(json.dumps(FIELDS | fields))
    with pytest.raises(CheckpointError) as error:
        read_config(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert named in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), ("{", "is not valid JSON"), ("[]", "must hold a JSON object")]
)
def test_a_file_that_holds_no_config_is_named(content: str | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize(
    ("preset", "parameters", "embedding", "state_bf16", "state_f32", "depth", "attention_layers"),
    [
        ("2b", 2_682_862_080, 655_360_000, 17_238_048, 34_291_744, 26, 8),
        ("9b", 8_579_977_216, 1_048_576_000, 26_230_832, 52_035_632, 38, 12),
    ],
)
def test_presets_have_the_sizes_of_the_published_models(
    preset: str,
    parameters: int,
    embedding: int,
    state_bf16: int,
    state_f32: int,
    depth: int,
    attention_layers: int,
) -> None:
    """Published sizes, without the int32 per attention layer that the official state has."""
    config = PRESETS[preset]
    assert config.num_parameters == parameters
    assert config.vocab_size * config.width == embedding
    assert (config.depth, config.block_types.count("attention")) == (depth, attention_layers)
    assert config.block_types[-2:] == ("recurrent", "recurrent")
    assert state_bytes(config, 2) == state_bf16 - 4 * attention_layers
    assert state_bytes(config, 4) == state_f32 - 4 * attention_layers


@pytest.mark.parametrize(
    ("fields", "heads"), [({}, 4), *(({"num_key_value_heads": given}, given or 4) for given in (None, 1, 2, 4))]
)
def test_key_heads_are_as_many_as_heads_unless_a_number_is_given(fields: dict[str, Any], heads: int) -> None:
    """A missing field and null mean what they mean in transformers."""
    config = changed(**fields)
    assert config.num_key_heads == heads
    assert config_to_hf(config)["num_key_value_heads"] == heads
    assert config_from_hf(config_to_hf(config)) == config


def test_key_heads_count_as_parameters_and_as_state() -> None:
    one = PRESETS["2b"]
    five = replace(one, num_key_heads=5)
    layers = one.block_types.count("attention")
    assert five.num_parameters - one.num_parameters == layers * 2 * 4 * one.head_dim * one.width
    assert state_bytes(five, 2) - state_bytes(one, 2) == layers * 2 * 4 * one.head_dim * one.window * 2
    int8 = replace(five, kv_dtype="int8")
    assert window_bytes(int8, 2) == layers * 2 * 5 * (one.head_dim + 4) * one.window


def test_identities_name_key_heads_only_where_there_are_several() -> None:
    """The text form of a config is part of the identity of saved states, which had no key heads at first."""
    text = (
        "ModelConfig(vocab_size=8, width=8, mlp_width=8, num_heads=2, lru_width=8, block_types=('attention',), "
        "window=2, conv_width=4, logits_soft_cap=30.0, scale_embeddings=True, rope_theta=10000.0, rms_norm_eps=1e-06, "
        "dtype='float32', quantize=None"
    )
    config = ModelConfig(8, 8, 8, 2, 8, ("attention",), window=2)
    assert repr(config) == f"{text})"
    assert repr(replace(config, num_key_heads=2)) == f"{text}, num_key_heads=2)"


def test_cycle_repeats_and_cuts() -> None:
    assert cycle(("recurrent", "attention"), 3) == ("recurrent", "attention", "recurrent")
    assert cycle(("recurrent", "attention"), 1) == ("recurrent",)
