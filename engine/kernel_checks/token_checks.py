"""Checks of the kernels that choose tokens, the sampler and the argmax of logits, against XLA."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...kernels import XLA, Backend
from ...kernels.matrices import Int8Matrix, Matrix
from ...kernels.products import argmax, logits
from ..model.config import ModelConfig
from ..sampling.logits_processors import zero_sampling_state, zero_token_memory
from ..sampling.sampler import Sampled, sample
from ..types.sampling_params import SAMPLING_COLUMNS, SamplingState

_ALLOWED: Final = 0.02
"""Share of drawn rows that may have another token: sums of a whole vocabulary in another order move their borders."""

_ALLOWED_LOGIT: Final = 2**-7
"""Relative difference of the largest logits that may be taken for equal: two roundings of bfloat16."""

_CAP: Final = 30.0
"""Soft cap of RecurrentGemma's logits."""

_PARAMS: Final[tuple[Mapping[str, float], ...]] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.0, "typical_p": 0.8},
)


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
    return sampler_inputs(4 * jax.random.normal(jax.random.key(0), (rows, model.vocab_size)))


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


def sampler_inputs(logits: Any) -> tuple[Any, SamplingState[Array], Any, Array, Array]:
    """Returns the arguments of `sample` for rows of logits."""
    rows, vocab_size = logits.shape
    positions, is_active = jnp.arange(rows, dtype=jnp.int32), jnp.ones(rows, jnp.bool)
    return jnp.asarray(logits), _state(rows), zero_token_memory(rows, vocab_size), positions, is_active


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
