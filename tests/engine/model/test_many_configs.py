"""Configs that other people have trained with, and random ones, give the reference's logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from random_configs import configs
from reference_griffin import reference_logits
from roost.engine.checkpoint.format import ReadRows
from roost.engine.checkpoint.layout import FlaxView
from roost.engine.checkpoint.official import OfficialArray, found_arrays
from roost.engine.model.config import ModelConfig, config_from_hf
from small_models import counting, noisy_model
from sweeps import examples, swept

STEPS, BLOCK = 40, 4

SIZES: dict[str, Any] = {"model_type": "recurrent_gemma", "vocab_size": 128, "hidden_size": 512}

PUBLIC: dict[str, dict[str, Any]] = {
    "8 heads": {
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "intermediate_size": 1024,
        "hidden_activation": "gelu_fast",
    },
    "2 key heads": {
        "num_hidden_layers": 15,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    },
    "short window": {
        "num_hidden_layers": 22,
        "num_attention_heads": 8,
        "intermediate_size": 1024,
        "attention_window_size": 32,
        "logits_soft_cap": 12.0,
    },
}
"""Fields of public configs, whose vocabularies are smaller here."""


def assert_equals_the_reference(config: ModelConfig) -> None:
    """Compares a chunk, and single steps after it, with the oracle in float64."""
    model, rng = noisy_model(config, block=BLOCK, seed=3), np.random.default_rng(4)
    tokens = rng.integers(0, config.vocab_size, STEPS + 2, np.int32)
    expected = reference_logits(config, model.params, tokens)
    logits, state = model.run(tokens[None, :STEPS], counting([STEPS], STEPS), model.zero(1))
    found = [logits[0]]
    for place in range(STEPS, STEPS + 2):
        logits, state = model.run(tokens[None, place : place + 1], np.full((1, 1), place, np.int32), state)
        found.append(logits[0])
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["2 key heads", *swept("8 heads", "short window")])
def test_public_shapes_equal_the_reference(name: str) -> None:
    assert_equals_the_reference(config_from_hf(SIZES | PUBLIC[name]))


@pytest.mark.parametrize(
    ("name", "heads", "key_heads"), [("8 heads", 8, 8), ("2 key heads", 2, 2), ("short window", 8, 8)]
)
def test_public_shapes_are_read(name: str, heads: int, key_heads: int) -> None:
    config = config_from_hf(SIZES | PUBLIC[name])
    assert (config.num_heads, config.num_key_heads, config.width) == (heads, key_heads, 512)
    assert config.rope_theta == (500000.0 if name == "2 key heads" else 10000.0)


def test_official_arrays_have_one_key_head(tmp_path: Path) -> None:
    """The fourth public shape is the official library's, in msgpack."""
    shapes = {
        "embedder.input_embedding": (128, 512),
        "blocks.0.mlp_block.ffw_up.w": (2, 512, 1536),
        "blocks.0.temporal_pre_norm.scale": (512,),
        "blocks.0.recurrent_block.rg_lru.a_gate.w": (8, 64, 64),
        "blocks.0.recurrent_block.conv_1d.w": (4, 512),
        "blocks.1.temporal_pre_norm.scale": (512,),
        "blocks.1.attention_block.proj_k.kernel": (512, 64),
    }
    others = {"attention_window_size": 2048, "logits_soft_cap": 30.0, "embeddings_scale_by_sqrt_dim": True}
    (tmp_path / "griffin_config.json").write_text(json.dumps(others))

    def unread(view: FlaxView) -> ReadRows:
        raise AssertionError(view)

    arrays = {name: OfficialArray(shape, "float32", unread) for name, shape in shapes.items()}
    config = found_arrays(tmp_path, tmp_path, arrays).config
    assert (config.num_heads, config.num_key_heads) == (8, 1)


@given(fields=configs())
@examples(3, sweep=40)
def test_random_configs_equal_the_reference(fields: dict[str, Any]) -> None:
    assert_equals_the_reference(config_from_hf(fields))
