"""Small models on the CPU for the model's tests, and rows of ragged length as arrays of one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from roost.engine.checkpoint.source import ModelSource, open_model, open_tensors
from roost.engine.checkpoint.weights import Checkpoint, load_params, random_params
from roost.engine.devices.platform import CPU, CPU_OPTIONS
from roost.engine.model.config import ModelConfig, Params
from roost.engine.model.griffin import Griffin, abstract_model
from roost.engine.model.layer_kinds import RecurrentState
from roost.engine.model.state import ModelState, zero_state

TINY_A = Path(__file__).parents[1] / "golden" / "tiny-a"


@dataclass(frozen=True, eq=False)
class SmallModel:
    """A model with its parameters, in the types that the runner uses on a CPU.

    `block` is the attention's, so chunks have 1 step or a multiple of it.
    """

    config: ModelConfig
    graph: nnx.GraphDef[Griffin]
    params: Params
    dtype: np.dtype[Any]
    block: int

    def zero(self, rows: int) -> ModelState:
        shapes = jax.eval_shape(lambda: zero_state(self.config, rows, self.dtype))
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def run(self, tokens: np.ndarray, positions: np.ndarray, state: ModelState) -> tuple[np.ndarray, ModelState]:
        """Logits `[B, T, V]` and the new state of one chunk."""
        logits, state = _forward(self.graph, self.params, tokens, positions, state, self.block)
        return np.asarray(logits), state


@partial(jax.jit, static_argnums=(0, 5), compiler_options=CPU_OPTIONS)
def _forward(
    graph: nnx.GraphDef[Griffin],
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    state: ModelState,
    block: int,
) -> tuple[jax.Array, ModelState]:
    model = nnx.merge(graph, params)
    hidden, state = model(tokens, positions, state, block)
    return model.logits(hidden), state


def tiny_a(dtype: str = "float32", block: int = 16, *, matrices: str | None = None) -> SmallModel:
    """The golden model."""
    return read_model(open_model(str(TINY_A / "hf")), dtype, block, matrices=matrices)


def read_model(source: ModelSource, dtype: str, block: int, *, matrices: str | None = None) -> SmallModel:
    """A checkpoint, its matrices in a type of their own if one is given."""
    config, kind = source.config, jnp.dtype(dtype)
    graph, abstract = abstract_model(config, kind, CPU, matrix_dtype=None if matrices is None else jnp.dtype(matrices))
    with open_tensors(source.weights, config) as tensors:
        return SmallModel(config, graph, load_params(Checkpoint(config, tensors), abstract), kind, block)


def noisy_model(config: ModelConfig, dtype: str = "float32", block: int = 4, seed: int = 0) -> SmallModel:
    """Random parameters; those that start out as zeros (biases, norms' scales) are drawn as well."""
    kind = jnp.dtype(dtype)
    graph, abstract = abstract_model(config, kind, CPU)
    rng = np.random.default_rng(seed)

    def add_noise(x: jax.Array) -> np.ndarray:
        return (np.asarray(x, np.float32) + 0.2 * rng.normal(size=x.shape).astype(np.float32)).astype(x.dtype)

    return SmallModel(config, graph, jax.tree.map(add_noise, random_params(abstract, seed)), kind, block)


def ragged(rows: Sequence[np.ndarray], steps: int, filler: int = 0) -> np.ndarray:
    """Rows of any length as one array `[len(rows), steps]`, filled up on the right."""
    out = np.full((len(rows), steps), filler, np.int32)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def counting(lengths: Sequence[int], steps: int, starts: Sequence[int] | None = None) -> np.ndarray:
    """Positions of rows of these lengths, from these starts (0) on; -1 in padding."""
    starts = starts or [0] * len(lengths)
    return ragged([s + np.arange(n) for s, n in zip(starts, lengths, strict=True)], steps, filler=-1)


def row_of(state: ModelState, row: int) -> list[np.ndarray]:
    """One row of every array of a state."""
    arrays: list[np.ndarray] = []
    for layer in jax.tree.map(np.asarray, state):
        if isinstance(layer, RecurrentState):
            arrays += [layer.h[row], layer.conv[:, row]]
        else:
            arrays += [ring[row] for ring in layer.rings]
    return arrays
