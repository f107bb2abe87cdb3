"""Steps in which kernels are checked: a decode step and a prefill chunk of a model with one layer of each kind.

The model has the served widths. Rows are idle, fresh, within their first window and behind it; chunks have padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32

from ...kernels.window_attention import block_sizes, for_each_head, heads_as_rows, num_key_heads, rows_as_heads
from ...kernels.window_attention.int8 import Int8Vectors
from ..devices.platform import Platform
from ..model.config import ModelConfig
from ..model.griffin import Params
from ..model.layer_kinds import LAYER_KINDS, AttentionState, LayerState, kind_of, slot_axes
from ..model.state import ModelState, zero_state
from ..types.config import PREFILL_BLOCK
from ..worker.steps import Graph

_VOCAB_SIZE: Final = 256
_LARGE: Final = 1e4

type Outputs = Mapping[str, np.ndarray]
"""Results of a step in float32, by name, of the rows that aren't idle and of tokens that aren't padding."""


class StepShape(NamedTuple):
    """Size of a step.

    Attributes:
      tokens: Number of tokens of each row; 1 for a decode step.
    """

    rows: int
    tokens: int

    @property
    def is_decode(self) -> bool:
        """Whether it is a decode step."""
        return self.tokens == 1


class StepInputs(NamedTuple):
    """Inputs of a step.

    Attributes:
      tokens: Token ids.
      positions: Position of each token; negative for padding and idle rows.
      state: State of all rows before the step, with windows in one block.
      padding: Activations of each row's padding in a prefill chunk.
    """

    tokens: Int32[Array, "B T"]
    positions: Int32[Array, "B T"]
    state: ModelState
    padding: Float32[Array, " B"]


def shallow(model: ModelConfig) -> ModelConfig:
    """Returns a config with one layer of each kind that a model has, and few token ids."""
    kinds = tuple(kind for kind in LAYER_KINDS if kind in model.block_types)
    return replace(model, block_types=kinds, vocab_size=_VOCAB_SIZE)


def draw_inputs(model: ModelConfig, shape: StepShape, dtype: np.dtype[Any], *, broken: bool = False) -> StepInputs:
    """Returns random inputs on JAX's default device; each call draws the same.

    Args:
      model: A model of `shallow`.
      shape: Size of the step.
      dtype: Dtype of the activations.
      broken: Whether idle rows are NaN and padding is large, which the other tokens must not notice.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (shape.rows, shape.tokens)).astype(np.int32)
    positions = _positions(rng, model.window, shape)
    state = _draw_state(rng, model, shape.rows, dtype)
    padding, idle = np.zeros(shape.rows, np.float32), positions[:, 0] < 0
    if broken:
        padding, state = np.where(idle, np.nan, _LARGE), _with_broken_rows(state, jnp.asarray(idle))
    return StepInputs(jnp.asarray(tokens), jnp.asarray(positions), state, jnp.asarray(padding, jnp.float32))


def _positions(rng: np.random.Generator, window: int, shape: StepShape) -> Int32[np.ndarray, "B T"]:
    """Returns positions: the second row is idle, so that a step of one row has something to compare.

    The others begin before and where their window wraps; the first row of a chunk has no padding.
    """
    chunks = [window, -1, PREFILL_BLOCK, 3 * window + PREFILL_BLOCK]
    begins = [3 * window + 5, -1, 0, 7, window - 1, window] if shape.is_decode else chunks
    first = np.resize(begins, shape.rows)[:, None]
    lengths = rng.integers(1, shape.tokens + 1, (shape.rows, 1))
    lengths[0] = shape.tokens
    place = np.arange(shape.tokens, dtype=np.int32)
    return np.where((first >= 0) & (place < lengths), first + place, -1).astype(np.int32)


def _draw_state(rng: np.random.Generator, model: ModelConfig, rows: int, dtype: np.dtype[Any]) -> ModelState:
    def draw(x: Any) -> Array:
        if x.dtype == jnp.int8:
            return jnp.asarray(rng.integers(-127, 128, x.shape, dtype=np.int8))
        drawn = rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(drawn, x.dtype)

    def vectors(x: Any) -> Any:
        if not isinstance(x, Int8Vectors):
            return draw(x)
        return Int8Vectors(draw(x.values), jnp.abs(draw(x.scale)) / 127)

    shapes = jax.eval_shape(partial(zero_state, model, rows, dtype))
    drawn: ModelState = jax.tree.map(vectors, shapes, is_leaf=lambda x: isinstance(x, Int8Vectors))
    return drawn


def _with_broken_rows(state: ModelState, idle: Array) -> ModelState:
    def broken(axis: int, x: Array) -> Array:
        rows = idle.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return x if x.dtype == jnp.int8 else jnp.where(rows, jnp.asarray(jnp.nan, x.dtype), x)

    return tuple(jax.tree.map(broken, slot_axes(layer), layer) for layer in state)


def as_float32(inputs: StepInputs) -> StepInputs:
    """Returns the same inputs for a model in float32."""
    return inputs._replace(
        state=jax.tree.map(lambda x: x if x.dtype == jnp.int8 else x.astype(jnp.float32), inputs.state)
    )


@dataclass(frozen=True, slots=True)
class Step:
    """A step on one platform, as a function to be compiled.

    Attributes:
      graph: Code of the model.
      platform: Platform whose kernels it uses.
    """

    graph: Graph
    platform: Platform
    window: int

    def run(self, params: Params, inputs: StepInputs) -> Mapping[str, Array]:
        """Runs the step as it is served."""
        model = nnx.merge(self.graph, params)
        tokens, positions, state, padding = inputs
        if tokens.shape[1] == 1:
            hidden, new = model(tokens, positions, self._blocked(state), PREFILL_BLOCK)
        else:
            x, layers = model.embed(tokens), range(model.config.depth)
            x = jnp.where(positions[..., None] < 0, padding[:, None, None], x).astype(x.dtype)
            hidden, new, _ = model.prefill(x, positions, state, PREFILL_BLOCK, layers)
        return {"tokens": hidden, **_arrays(new, inputs)}

    def _blocked(self, state: ModelState) -> ModelState:
        if self.platform.window_block is None:
            return state
        sizes = block_sizes(self.window, self.platform.window_block)

        def layer(part: LayerState) -> LayerState:
            return part.split(sizes) if isinstance(part, AttentionState) else part

        return tuple(map(layer, state))


def _arrays(new: ModelState, inputs: StepInputs) -> dict[str, Array]:
    """Returns the parts of the state after a step, rows first, and how many other keys and values have changed."""
    parts: dict[str, Array] = {}
    for old, layer in zip(inputs.state, new, strict=True):
        if isinstance(layer, AttentionState):
            for name, was, now in zip(("keys", "values"), old.whole, layer.joined().whole, strict=True):
                heads = num_key_heads(now)
                each = heads_as_rows((was, now), heads)
                found = _window_parts(name, *each, for_each_head(inputs.positions, heads))
                parts |= rows_as_heads(found, heads)
            continue
        for array, x in zip(LAYER_KINDS[kind_of(layer)].arrays, layer, strict=True):
            parts[array.name] = jnp.moveaxis(x, array.slot_axis, 0)
    return parts


def _window_parts(name: str, old: Any, new: Any, positions: Array) -> dict[str, Array]:
    """Returns the vectors that a step writes into windows of one key head, and the number of others that changed."""
    window = old.shape[1]
    places = jnp.where(positions >= 0, positions % window, window)
    rows = jnp.arange(positions.shape[0])[:, None]
    is_written = jnp.zeros((positions.shape[0], window), jnp.bool).at[rows, places].set(True, mode="drop")
    changed = jnp.any(_vectors(old) != _vectors(new), axis=-1) & ~is_written & (positions[:, :1] >= 0)
    written = jnp.where(is_written[..., None], _dequantized(new), 0)
    if positions.shape[1] == 1:
        written = jnp.take_along_axis(written, jnp.minimum(places, window - 1)[..., None], axis=1)
    return {name: written, f"other {name}": jnp.sum(changed, axis=1)}


def _vectors(stored: Any) -> Array:
    vectors: Array = stored.values if isinstance(stored, Int8Vectors) else stored
    return vectors


def _dequantized(stored: Any) -> Array:
    if not isinstance(stored, Int8Vectors):
        return stored
    return stored.values * jnp.swapaxes(stored.scale, 1, 2)


def live(outputs: Mapping[str, Array], positions: Array) -> Outputs:
    """Returns a step's results on the host, without idle rows and padding."""
    valid = np.asarray(positions) >= 0
    rows = valid[:, 0]
    arrays = {name: np.asarray(x.astype(jnp.float32)) for name, x in outputs.items()}
    return {name: x[valid] if name == "tokens" else x[rows] for name, x in arrays.items()}
