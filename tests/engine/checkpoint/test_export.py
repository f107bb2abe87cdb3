"""A model's parameters, written as a checkpoint and read again, are the same."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.checkpoint import open_tensors
from roost.engine.checkpoint.layout import tensor_specs
from roost.engine.checkpoint.weights import Checkpoint, checkpoint_tensors, load_params, random_params
from roost.engine.devices.platform import CPU
from roost.engine.model.config import ModelConfig
from roost.engine.model.griffin import abstract_model
from safetensors.numpy import save_file

CONFIG = ModelConfig(
    vocab_size=11,
    width=8,
    mlp_width=12,
    num_heads=2,
    lru_width=10,
    block_types=("recurrent", "attention"),
    window=4,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_again(tmp_path: Path, dtype: str) -> None:
    _, abstract = abstract_model(CONFIG, jnp.dtype(dtype), CPU)
    # Biases and scales too: zeros would hide a mix-up.
    params = jax.tree.map(
        lambda p: np.asarray(p) + np.arange(p.size).reshape(p.shape).astype(p.dtype), random_params(abstract, 1)
    )
    save_file(checkpoint_tensors(params, CONFIG), tmp_path / "model.safetensors")
    with open_tensors([tmp_path / "model.safetensors"], CONFIG) as tensors:
        again = load_params(Checkpoint(CONFIG, tensors), abstract)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_tensors_have_the_names_and_shapes_of_the_layout() -> None:
    _, abstract = abstract_model(CONFIG, jnp.dtype("float32"))
    tensors = checkpoint_tensors(random_params(abstract, 1), CONFIG)
    wanted = {t.name: t.shape for t in tensor_specs(CONFIG)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
