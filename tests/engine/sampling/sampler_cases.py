"""Rows to sample and what their tokens are compared with."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from jaxtyping import Array
from roost.engine.devices.platform import CPU_OPTIONS
from roost.engine.sampling.sampler import Sampled, SamplingRows, TokenMemory, no_tokens, sample
from roost.engine.types.output_constraint import mask_of_ids, words_of_mask
from roost.engine.types.request import Request
from roost.engine.types.sampling_params import PENALTY_WINDOW, SamplingParams, SamplingState
from roost.engine.worker.transfer import sampling_columns
from roost.kernels import Backend, Kernel
from roost.kernels.sampling import Choice, SamplingInputs
from roost.kernels.sampling.pallas_tpu import sample_tpu
from sweeps import examples

DRAWS = 2048
"""Number of rows of `counts`: one distribution, as many seeds."""

ROWS, VOCAB = 4, 300
"""Size of the tests that mix requests; the vocabulary is no multiple of the 128 weights of a lane."""

PROMPT = 7
"""Length of every prompt here: the position of the first token that is sampled."""

FILTERS = {
    "temperature": st.floats(0.2, 2.0),
    "top_k": st.just(0) | st.integers(1, 100),
    "top_p": st.just(1.0) | st.floats(0.05, 0.999),
    "min_p": st.just(0.0) | st.floats(0.01, 1.0),
    "typical_p": st.just(1.0) | st.floats(0.05, 0.999),
}
"""Parameters that truncate a distribution, as keyword arguments, since requests are built inside the tests."""

jitted = jax.jit(sample, compiler_options=CPU_OPTIONS)

type Sampler = Callable[..., Sampled]


def interpreted_choice(logits: Array, fields: Collection[str], inputs: Callable[[], SamplingInputs]) -> Choice:
    return sample_tpu(logits, inputs(), interpret=True)


on_tpu: Sampler = jax.jit(
    partial(sample, backend=Backend("tpu", (Kernel("sample", ("sample",), interpreted_choice),))),
    compiler_options={"xla_backend_optimization_level": 0},  # an interpreted kernel is a large program
)
"""The sampler with the TPU's kernel, interpreted."""

every_sampler = pytest.mark.parametrize("sampler", [jitted, on_tpu], ids=["xla", "tpu"])

few_examples = examples(4, sweep=12)
"""Number of examples for the interpreted kernel, which takes five times as long as XLA."""


def state_of(requests: Sequence[SamplingParams]) -> SamplingState[Array]:
    """Returns the sampling state of requests."""
    columns = sampling_columns([Request("", (0,) * PROMPT, params) for params in requests], len(requests))
    columns["is_masked"] = np.array([params.static_mask is not None for params in requests])
    return SamplingState(**columns)


def memory_of(
    requests: Sequence[SamplingParams], vocab: int, prompt: Sequence[int] = (0,), generated: Sequence[int] = ()
) -> TokenMemory:
    """Returns the token memory of requests that all have this prompt and these tokens."""
    words, rows = words_of_mask(vocab), len(requests)
    everything = mask_of_ids(range(vocab), words)
    recent = np.array(no_tokens(rows))
    for place, token in enumerate(generated, PROMPT):
        recent[:, place % PENALTY_WINDOW] = token
    return TokenMemory(
        in_prompt=np.tile(mask_of_ids(prompt, words), (rows, 1)),
        allowed=np.stack([everything if p.static_mask is None else p.static_mask.mask(words) for p in requests]),
        recent=recent,
    )


def run(
    logits: np.ndarray,
    requests: Sequence[SamplingParams],
    num_tokens: int = 0,
    active: Sequence[bool] | None = None,
    memory: TokenMemory | None = None,
    sampler: Sampler = jitted,
) -> Sampled:
    """Samples the next token of each request after `num_tokens`."""
    positions = np.full(len(requests), PROMPT + num_tokens, np.int32)
    mask = np.array([True] * len(requests) if active is None else active)
    memory = memory_of(requests, logits.shape[1]) if memory is None else memory
    return sampler(logits.astype(np.float32), SamplingRows(state_of(requests), memory, positions, mask))


def counts(
    logits: np.ndarray,
    params: SamplingParams,
    num_tokens: int = 0,
    memory: TokenMemory | None = None,
    sampler: Sampler = jitted,
) -> np.ndarray:
    """Returns how often each token comes in `DRAWS` draws, each with its own seed; `memory` has one row."""
    seeds = np.random.default_rng(params.seed).integers(0, 2**64, DRAWS, np.uint64)
    one = jax.tree.map(lambda x: np.repeat(np.asarray(x), DRAWS, axis=0), state_of([params]))
    state = replace(one, seed=np.stack([seeds & 0xFFFFFFFF, seeds >> 32], axis=1).astype(np.uint32))
    positions, active = np.full(DRAWS, PROMPT + num_tokens, np.int32), np.ones(DRAWS, np.bool)
    memory = memory_of([params], len(logits)) if memory is None else memory
    memories = jax.tree.map(lambda x: np.repeat(np.asarray(x), DRAWS, axis=0), memory)
    tokens = sampler(
        np.tile(logits.astype(np.float32), (DRAWS, 1)), SamplingRows(state, memories, positions, active)
    ).tokens
    return np.bincount(np.asarray(tokens), minlength=len(logits))


def check_frequencies(counts: np.ndarray, expected: np.ndarray) -> None:
    """Compares frequencies by Pearson's test, rare tokens pooled, at six standard deviations: never by chance."""
    assert not counts[expected == 0].any(), "a token that the request excludes"
    frequent = expected * DRAWS >= 10
    cells = [*zip(counts[frequent], expected[frequent] * DRAWS, strict=True)]
    cells.append((counts[~frequent].sum(), max(expected[~frequent].sum() * DRAWS, 1.0)))
    statistic = sum((n - mean) ** 2 / mean for n, mean in cells)
    assert statistic < len(cells) + 6 * np.sqrt(2 * len(cells)) + 10


def quantised(seed: int, vocab: int, scale: float) -> np.ndarray:
    """Returns logits rounded to quarters, so that some are equal."""
    return np.round(scale * np.random.default_rng(seed).normal(size=vocab) * 4) / 4


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
