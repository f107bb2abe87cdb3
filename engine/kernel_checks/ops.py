"""Ops that kernels compute, each alone at a model's widths, for the kernels' checks; and ops that choose tokens.

Inputs are drawn, and the same in each draw. Rows are idle, fresh, within their first window and behind it; chunks have
padding. Kernels that choose tokens, the sampler and the argmax of logits, are compared with XLA by their tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from ...kernels import XLA, Backend
from ...kernels.matrices import Int8Matrix, Matrix
from ...kernels.products import argmax, gated_mlp, logits, product
from ...kernels.recurrent_block import RecurrentWeights, recurrent_block
from ...kernels.rms_norm import add_rms_norm, rms_norm
from ...kernels.window_attention import (
    Int8Vectors,
    Vectors,
    decode_attention,
    prefill_attention,
)
from ..devices.platform import Platform
from ..model.config import ModelConfig
from ..sampling.sampler import Sampled, sample, zero_sampling_state, zero_token_memory
from ..types.config import PREFILL_BLOCK
from ..types.sampling_params import SAMPLING_COLUMNS, SamplingState

_LARGE: Final = 1e4
"""Padding that must not reach the other tokens of its row."""

_MAX_VOCABULARY: Final = 4096
"""Maximum number of token ids of the output layer, whose kernels treat all alike."""

_EPS: Final = 1e-6
"""Constant of the model's norms."""

_CAP: Final = 30.0
"""Soft cap of its logits."""


type Drawn = tuple[tuple[Any, ...], tuple[Any, ...]]
"""Weights of an op, and its other inputs."""

_ALLOWED: Final = 0.02
"""Share of drawn rows that may have another token: sums of a whole vocabulary in another order move their borders."""

_ALLOWED_LOGIT: Final = 2**-7
"""Relative difference of the largest logits that may be taken for equal: two roundings of bfloat16."""

_PARAMS: Final[tuple[Mapping[str, float], ...]] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.0, "typical_p": 0.8},
)


class StepShape(NamedTuple):
    """Size of a step.

    Attributes:
      tokens: Number of tokens of each row; 1 for a decode step.
    """

    rows: int
    tokens: int

    @property
    def step(self) -> str:
        """Kind of the step: "decode" or "prefill"."""
        return "decode" if self.tokens == 1 else "prefill"


class Results(NamedTuple):
    """Results of an op by name: of each token, `[B, T, ...]`, and of each row, `[B, ...]`."""

    tokens: Mapping[str, Array] = {}
    rows: Mapping[str, Array] = {}


@dataclass(frozen=True)
class Draw:
    """Draws an op's arrays on the host.

    Attributes:
      model: Model whose widths they have.
      dtype: Dtype of the activations.
      gate_dtype: Dtype of the RG-LRU's gate matrices.
      is_int8: Whether matrices and windows are in int8.
      broken: Whether idle rows are NaN and padding is large, which the other tokens must not notice.
    """

    model: ModelConfig
    shape: StepShape
    dtype: np.dtype[Any]
    gate_dtype: np.dtype[Any]
    is_int8: bool
    broken: bool = False
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def positions(self) -> Int32[np.ndarray, "B T"]:
        """Position of each token; negative for padding and idle rows.

        The second row is idle, so that a step of one row has something to compare. The others begin before and where
        their window wraps; the first row of a chunk has no padding.
        """
        (rows, tokens), window = self.shape, self.model.window
        chunks = [window, -1, PREFILL_BLOCK, 3 * window + PREFILL_BLOCK]
        begins = [3 * window + 5, -1, 0, 7, window - 1, window] if tokens == 1 else chunks
        first = np.resize(begins, rows)[:, None]
        lengths = np.random.default_rng(1).integers(1, tokens + 1, (rows, 1))
        lengths[0] = tokens
        place = np.arange(tokens, dtype=np.int32)
        return np.where((first >= 0) & (place < lengths), first + place, -1).astype(np.int32)

    def normal(self, *shape: int, dtype: Any = np.float32, scale: float = 1.0) -> np.ndarray:
        """Returns normally distributed numbers."""
        return (scale * self._rng.standard_normal(shape, np.float32)).astype(dtype)

    def activations(self, *width: int, dtype: Any = None) -> np.ndarray:
        """Returns `[B, T, *width]` in the dtype of the activations, or another one."""
        x, positions = self.normal(*self.shape, *width, dtype=dtype or self.dtype), self.positions
        if self.broken:
            x[positions < 0] = _LARGE
            x[positions[:, 0] < 0] = np.nan
        return x

    def state(self, *shape: int, dtype: Any = np.float32, axis: int = 0) -> np.ndarray:
        """Returns a state whose axis of rows is `axis`."""
        x = self.normal(*shape, dtype=dtype)
        if self.broken:
            np.moveaxis(x, axis, 0)[self.positions[:, 0] < 0] = np.nan
        return x

    def matrix(self, outputs: int, inputs: int) -> Any:
        """Returns a matrix whose products are about as large as their inputs."""
        if not self.is_int8:
            return self.normal(outputs, inputs, dtype=self.dtype, scale=inputs**-0.5)
        values = self._rng.integers(-127, 128, (outputs, inputs), np.int8)
        return Int8Matrix(values, self._rng.uniform(0.5, 1.5, outputs).astype(np.float32) / (73 * inputs**0.5))

    def vectors(self, x: np.ndarray) -> Any:
        """Returns keys or values of several tokens as windows hold them."""
        if not self.is_int8:
            return x
        wide = x.astype(np.float32)
        scale: Any = np.abs(wide).max(axis=-1, keepdims=True) / 127
        values: Any = np.nan_to_num(np.rint(wide / scale)).astype(np.int8)
        return Int8Vectors(values, np.swapaxes(scale, -1, -2))


class Op(NamedTuple):
    """An op to check.

    Attributes:
      name: Name of the op, as kernels have it.
      draw: Draws its weights and its other inputs.
      run: Computes it on a platform; takes all that was drawn.
      steps: Steps in which it is computed.
      layer: Kind of the layers that have it; None for all models.
      has_int8: Whether it has matrices or windows, which may be in int8.
      part: Name of an op that it dispatches itself.
    """

    name: str
    draw: Callable[[Draw], Drawn]
    run: Callable[..., Results]
    steps: tuple[str, ...] = ("decode", "prefill")
    layer: str | None = None
    has_int8: bool = False
    part: str = ""


def _draw_product(draw: Draw) -> Drawn:
    outputs, width = 2 * draw.model.lru_width, draw.model.width
    return (draw.matrix(outputs, width), draw.normal(outputs)), (draw.activations(width),)


def _product(on: Platform, weight: Any, bias: Array, x: Array) -> Results:
    return Results({"products": product(x, weight, bias, x.dtype, on.kernels)})


def _draw_mlp(draw: Draw) -> Drawn:
    width, hidden = draw.model.width, draw.model.mlp_width
    up = draw.matrix(2 * hidden, width), draw.normal(2 * hidden)
    down = draw.matrix(width, hidden), draw.normal(width)
    return (*up, *down), (draw.activations(width),)


def _mlp(on: Platform, gate_up: Any, gate_up_bias: Array, down: Any, down_bias: Array, x: Array) -> Results:
    return Results({"mlp": gated_mlp(x, gate_up, gate_up_bias, down, down_bias, on.kernels)})


def _draw_norm(draw: Draw) -> Drawn:
    width = draw.model.width
    return (draw.normal(width),), (draw.activations(width), draw.activations(width))


def _norm(on: Platform, scale: Array, x: Array, y: Array) -> Results:
    total, normed = add_rms_norm(x, y, scale, _EPS, on.kernels)
    return Results({"norm": rms_norm(x, scale, _EPS, on.kernels), "sum": total, "norm of sum": normed})


def _draw_logits(draw: Draw) -> Drawn:
    model = draw.model
    return (draw.matrix(min(model.vocab_size, _MAX_VOCABULARY), model.width),), (draw.activations(model.width),)


def _logits(on: Platform, weight: Any, x: Array) -> Results:
    return Results({"logits": logits(x, weight, _CAP, on.kernels)})


def _draw_block(draw: Draw) -> Drawn:
    blocks, width, taps, rows = draw.model.num_heads, draw.model.lru_width, draw.model.conv_width, draw.shape.rows
    size = width // blocks
    gates = draw.normal(blocks, size, 2 * size, dtype=draw.gate_dtype, scale=size**-0.5)
    weights: Any = (
        draw.normal(taps, width),
        draw.normal(width),
        gates,
        draw.normal(blocks, 2 * size),
        draw.normal(width),
    )
    conv, h = draw.state(taps - 1, rows, width, dtype=draw.dtype, axis=1), draw.state(rows, width)
    return (RecurrentWeights(*weights),), (draw.activations(2 * width), conv, h, draw.positions)


def _block(on: Platform, weights: RecurrentWeights, xy: Array, conv: Array, h: Array, positions: Array) -> Results:
    def project(dtype: Any) -> Array:
        return xy if dtype is None else xy.astype(dtype)

    found = recurrent_block(project, weights, conv, h, positions, PREFILL_BLOCK, 1, on.kernels)
    states = found._replace(conv=jnp.moveaxis(found.conv, 1, 0))._asdict()
    mixed = states.pop("mixed").reshape(*positions.shape, -1)
    return Results({"mixed": mixed}, {name: x for name, x in states.items() if x is not None})


def _draw_attention(draw: Draw) -> Drawn:
    model, rows = draw.model, draw.shape.rows
    heads = (model.num_key_heads,) if model.num_key_heads > 1 else ()
    new = (draw.activations(*heads, model.head_dim) for _ in range(2))
    k, v = (draw.vectors(np.moveaxis(x, 1, -2)) for x in new)
    rings = [draw.state(rows, *heads, model.window, model.head_dim, dtype=draw.dtype) for _ in range(2)]
    q = draw.activations(model.num_heads, model.head_dim)
    return (), (q, k, v, *map(draw.vectors, rings), draw.positions)


def _decode(
    on: Platform, q: Array, k: Vectors, v: Vectors, ring_k: Vectors, ring_v: Vectors, positions: Array
) -> Results:
    rings = ring_k, ring_v
    mixed, new = decode_attention(q[:, 0], _only(k), _only(v), rings, positions[:, 0], on.kernels)
    return Results({"heads": mixed[:, None]}, _written(rings, new, positions))


def _prefill(
    on: Platform, q: Array, k: Vectors, v: Vectors, ring_k: Vectors, ring_v: Vectors, positions: Array
) -> Results:
    mixed, new = prefill_attention(q, k, v, (ring_k, ring_v), positions, PREFILL_BLOCK, on.kernels)
    return Results({"heads": mixed}, _written((ring_k, ring_v), new, positions))


def _only(vectors: Vectors) -> Vectors:
    """Returns keys or values of one token, without the axis of tokens."""
    if isinstance(vectors, Int8Vectors):
        return Int8Vectors(vectors.values[..., 0, :], vectors.scale[..., 0])
    return vectors[..., 0, :]


def _written(rings: Any, new: Any, positions: Array) -> dict[str, Array]:
    """Returns the vectors that a step has written into rings, and how many others have changed."""
    (rows, tokens), window, found = positions.shape, rings[0].shape[-2], {}
    slots = jnp.where(positions >= 0, positions % window, window)
    nothing = jnp.zeros((rows, window), jnp.bool)
    is_written = nothing.at[jnp.arange(rows)[:, None], slots].set(True, mode="drop")
    for name, before, after in zip(("keys", "values"), rings, new, strict=True):
        heads = (1,) * (len(after.shape) - 3)  # the axis of several key heads
        changed = jnp.any(_values(before) != _values(after), axis=-1) & ~is_written.reshape(rows, *heads, window)
        place = jnp.minimum(slots, window - 1).reshape(rows, *heads, tokens, 1)
        vectors = jnp.take_along_axis(_dequantized(after), place, axis=-2)
        found[name] = jnp.where((positions >= 0).reshape(rows, *heads, tokens, 1), vectors, 0)
        found[f"other {name}"] = jnp.sum(changed.reshape(rows, -1), axis=1)
    return found


def _values(vectors: Vectors) -> Array:
    return vectors.values if isinstance(vectors, Int8Vectors) else vectors


def _dequantized(vectors: Vectors) -> Array:
    if not isinstance(vectors, Int8Vectors):
        return vectors
    return vectors.values * jnp.swapaxes(vectors.scale, -1, -2)


OPS: Final = (
    Op("product", _draw_product, _product, has_int8=True),
    Op("gated_mlp", _draw_mlp, _mlp, has_int8=True),
    Op("logits", _draw_logits, _logits, has_int8=True),
    Op("rms_norm", _draw_norm, _norm),
    Op("recurrent_block", _draw_block, _block, layer="recurrent", part="rg_lru"),
    Op("decode_attention", _draw_attention, _decode, steps=("decode",), layer="attention", has_int8=True),
    Op("prefill_attention", _draw_attention, _prefill, steps=("prefill",), layer="attention", has_int8=True),
)
"""All ops whose kernels are compared number by number; ops that choose tokens are in `TOKEN_CHECKS`."""


# --- ops that choose tokens


class TokenCheck(NamedTuple):
    """Check of a kernel that chooses tokens.

    Attributes:
      kernel: Name of the kernel, as `Backend.without` takes it.
      numbers: Dtype of its inputs.
      inputs: Returns random inputs for a model and a number of rows.
      tokens: Returns tokens, given a backend and the inputs.
      distance: Returns how wrong tokens are, given them, XLA's and the inputs.
      allowed: Largest distance that is allowed.
    """

    kernel: str
    numbers: str
    inputs: Callable[[ModelConfig, int], tuple[Any, ...]]
    tokens: Callable[..., Array]
    distance: Callable[..., float]
    allowed: float

    def run(self, model: ModelConfig, rows: int, backend: Backend) -> tuple[float, int]:
        """Returns the distance, and the number of rows with another token in a second run."""
        inputs = self.inputs(model, rows)

        def tokens(kernels: Backend) -> Any:
            return np.asarray(jax.jit(partial(self.tokens, kernels))(*inputs))

        first, second, expected = tokens(backend.only(self.kernel)), tokens(backend.only(self.kernel)), tokens(XLA)
        return self.distance(first, expected, *inputs), int(np.sum(first != second))


def _drawn(model: ModelConfig, rows: int) -> tuple[Any, ...]:
    """Returns the arguments of `sample`."""
    drawn = 4 * jax.random.normal(jax.random.key(0), (rows, model.vocab_size))
    positions, is_active = jnp.arange(rows, dtype=jnp.int32), jnp.ones(rows, jnp.bool)
    return drawn, _state(rows), zero_token_memory(rows, model.vocab_size), positions, is_active


def _sampled(kernels: Backend, *inputs: Any) -> Array:
    choose: Callable[..., Sampled] = partial(sample, backend=kernels)
    return choose(*inputs).tokens


def _other_tokens(tokens: np.ndarray, expected: np.ndarray, logits: Any, state: Any, *others: Any) -> float:
    """Returns the share of rows with another token; 1 if a greedy row has another one."""
    is_greedy = np.asarray(state.temperature) == 0
    return float(np.mean(tokens != expected)) if np.array_equal(tokens[is_greedy], expected[is_greedy]) else 1.0


def _heads(model: ModelConfig, rows: int) -> tuple[Array, Array]:
    first, second = jax.random.split(jax.random.key(0))
    shapes = (rows, model.width), (model.vocab_size, model.width)
    x, weight = (jax.random.normal(*each, jnp.bfloat16) for each in zip((first, second), shapes, strict=True))
    return x / model.width**0.5, weight


def _int8_heads(model: ModelConfig, rows: int) -> tuple[Array, Int8Matrix]:
    x, weight = _heads(model, rows)
    scale = jnp.linspace(0.02, 0.03, len(weight), dtype=jnp.float32)
    return x, Int8Matrix(jnp.round(32 * weight).astype(jnp.int8), scale)


def _largest(kernels: Backend, x: Array, weight: Matrix) -> Array:
    return argmax(x, weight, _CAP, kernels)


def _smaller_logits(tokens: np.ndarray, expected: np.ndarray, x: Array, weight: Matrix) -> float:
    """Returns the largest difference of a row between its highest logit and its token's, relative to the highest."""
    every = np.asarray(logits(x, weight, _CAP, XLA))
    found, best = (np.take_along_axis(every, each[:, None], axis=1) for each in (tokens, expected))
    return float(np.max((best - found) / best))


TOKEN_CHECKS: Final = (
    TokenCheck("sample", "float32", _drawn, _sampled, _other_tokens, _ALLOWED),
    TokenCheck("argmax", "bfloat16", _heads, _largest, _smaller_logits, _ALLOWED_LOGIT),
    TokenCheck("argmax", "bfloat16, weights in int8", _int8_heads, _largest, _smaller_logits, _ALLOWED_LOGIT),
)
"""Checks of all kernels that choose tokens."""


def _state(rows: int) -> SamplingState[Array]:
    """Returns rows that take turns at the parameters, each with its own seed."""
    state = zero_sampling_state(rows)
    turn = [_PARAMS[row % len(_PARAMS)] for row in range(rows)]
    names = {name for params in _PARAMS for name in params}

    def column(name: str) -> Array:
        field = SAMPLING_COLUMNS[name]
        return jnp.asarray([params.get(name, field.neutral) for params in turn], field.dtype)

    columns = {name: column(name) for name in sorted(names)}
    seeds = jnp.stack([jnp.arange(rows), jnp.zeros(rows, jnp.int32)], axis=1).astype(state.seed.dtype)
    return replace(state, **columns, seed=seeds)
