"""Check of the sampler's kernel against XLA's sampler."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...kernels import XLA, Backend
from ..sampling.sampler import sample
from ..sampling.state import zero_sampling_state, zero_token_memory
from ..types.sampling_params import SAMPLING_COLUMNS, SamplingState

SAMPLE: Final = "sample"
"""Name of the kernel, as `Backend.without` takes it."""

_ALLOWED: Final = 0.02
"""Share of drawn rows that may have another token: sums of a whole vocabulary in another order move their borders."""

_PARAMS: Final[tuple[Mapping[str, float], ...]] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.05},
    {"temperature": 1.0, "typical_p": 0.8},
)


def check_sampler(rows: int, vocab_size: int, backend: Backend) -> tuple[float, int, float]:
    """Samples rows with and without the kernel.

    Returns:
      The share of rows with another token, and the largest that is allowed: 1 if a greedy row has another one; between
      them, the number of rows with another token in a second run.
    """
    inputs = sampler_inputs(4 * np.random.default_rng(0).standard_normal((rows, vocab_size), np.float32))

    def tokens(kernels: Backend) -> Any:
        return np.asarray(jax.jit(partial(sample, backend=kernels))(*inputs).tokens)

    first, second, expected = tokens(backend.only(SAMPLE)), tokens(backend.only(SAMPLE)), tokens(XLA)
    is_greedy = np.asarray(inputs[1].temperature) == 0
    share = float(np.mean(first != expected)) if np.array_equal(first[is_greedy], expected[is_greedy]) else 1.0
    return share, int(np.sum(first != second)), _ALLOWED


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
