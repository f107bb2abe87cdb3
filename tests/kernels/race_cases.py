"""Cases of the tests for races: a TPU kernel each, in blocks as served and few of them, compared with its reference.

Each is a function of `run`, which interprets a kernel with some arguments and returns arrays of NumPy.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from int8_cases import as_floats, blocks_of_32_rows, draw_float32, int8, int8_matrix
from roost.kernels.matrices import Int8Matrix
from roost.kernels.products.pallas_tpu import argmax_tpu, gated_mlp_tpu, int8_gated_mlp_tpu, int8_product_tpu
from roost.kernels.recurrent_block import RecurrentInputs, RecurrentWeights
from roost.kernels.recurrent_block.pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu
from roost.kernels.references import (
    gated_mlp_reference,
    int8_gated_mlp_reference,
    int8_product_reference,
    recurrent_block_reference,
    window_attention_reference,
)
from roost.kernels.sampling.pallas_tpu import sample_tpu
from roost.kernels.window_attention import Int8Vectors
from roost.kernels.window_attention.pallas_tpu_decode import decode_attention_tpu
from roost.kernels.window_attention.pallas_tpu_prefill import prefill_attention_tpu
from sampling_cases import inputs_of

type Run = Callable[..., Any]

HEADS, SIZE, WIDTH = 10, 256, 2560
"""Heads, head size and width of 2B. Gate blocks have as many channels as heads."""

close = partial(np.testing.assert_allclose, rtol=0.02, atol=0.03)  # in bfloat16


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.bfloat16)


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float32) for x in arrays]


def held(seed: int, *shape: int, is_int8: bool) -> Any:
    """Returns keys or values as rings hold them."""
    return int8(np.float32(draw(seed, *shape))) if is_int8 else draw(seed, *shape)


def floats(x: Any) -> np.ndarray:
    return as_floats(x) if isinstance(x, Int8Vectors) else np.float32(x)


def decode(run: Run, *, is_int8: bool = False) -> None:
    """Rows with an empty, a filled and a partly filled ring write to both of its blocks; one is idle.

    Blocks of rings in int8 are twice as long.
    """
    rows, window = 4, 2048 if is_int8 else 1024
    where = np.array([window - 324, -1, 0, 5 * window + 3], np.int32)
    busy, slots = np.flatnonzero(where >= 0), where[where >= 0] % window
    q, k, v = draw(1, rows, HEADS, SIZE), *(held(seed, rows, SIZE, is_int8=is_int8) for seed in (2, 3))
    rings = [held(seed, rows + 1, window, SIZE, is_int8=is_int8) for seed in (4, 5)]
    out, written = run(decode_attention_tpu, q, k, v, *rings, where)
    seen = [np.float32(q)[:, None], *(floats(x)[:, None] for x in (k, v)), *(floats(x)[:rows] for x in rings)]
    expected, *_ = window_attention_reference(*seen, where[:, None])
    close(np.float32(out)[busy], expected[busy, 0])
    for found, old, new in zip(written, rings, (k, v), strict=True):
        wanted = jax.tree.map(np.copy, old)
        if is_int8:
            wanted.values[busy, slots], wanted.scale[busy, 0, slots] = new.values[busy], new.scale[busy, 0]
        else:
            wanted[busy, slots] = new[busy]
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def prefill(run: Run, *, is_int8: bool = False) -> None:
    """Two rows with two blocks of queries, which see up to three blocks of keys."""
    rows, steps, window, heads = 2, 264, 256, 2
    where = np.array([[500], [100]], np.int32) + np.arange(steps, dtype=np.int32)
    q, k, v = draw(1, rows, steps, heads, SIZE), *(held(seed, rows, steps, SIZE, is_int8=is_int8) for seed in (2, 3))
    rings = [held(seed, rows, window, SIZE, is_int8=is_int8) for seed in (4, 5)]
    found = run(prefill_attention_tpu, q, k, v, *rings, where)
    expected, *_ = window_attention_reference(np.float32(q), *map(floats, (k, v, *rings)), where)
    close(np.float32(found), expected)


def recurrent_weights(blocks: int) -> RecurrentWeights:
    rng, width = np.random.default_rng(0), blocks * SIZE
    draw_float32 = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    gates = (draw_float32(blocks, SIZE, 2 * SIZE) / 16).astype(jnp.bfloat16)
    conv = draw_float32(4, width), draw_float32(width)
    return RecurrentWeights(*conv, gates, draw_float32(blocks, 2 * SIZE), 2 * draw_float32(width) - 2)


def recurrent_step(run: Run) -> None:
    """Two gate blocks and two blocks of rows, whose states are updated in place; one row in three is idle."""
    rows, width, weights = 304, 2 * SIZE, recurrent_weights(2)
    where = (np.arange(rows) % 3 - 1).astype(np.int32)
    xy, conv, h = draw(1, rows, 2 * width), draw(2, 3, rows, width), np.float32(draw(3, rows, width))
    out, new_conv, new_h = run(recurrent_step_tpu, xy, RecurrentInputs(weights, conv, h, where))
    expected, expected_conv, expected_h = recurrent_block_reference(
        np.float32(xy)[:, None], *wide(*weights), np.float32(conv), h, where[:, None]
    )
    close(np.float32(out)[where >= 0], expected[where >= 0, 0])
    close(new_h, expected_h)
    np.testing.assert_array_equal(np.float32(new_conv), expected_conv.astype(np.float32))


def recurrent_chunk(run: Run) -> None:
    """Two gate blocks, two rows and two blocks of time, the second of which is mostly padding."""
    rows, steps, every, width, weights = 2, 264, 64, 2 * SIZE, recurrent_weights(2)
    where = np.array([[0], [7]], np.int32) + np.arange(steps, dtype=np.int32)
    xy, conv, h = draw(1, rows, steps, 2 * width), draw(2, 3, rows, width), np.float32(draw(3, rows, width))
    out, new_h, _ = run(partial(recurrent_chunk_tpu, every=every), xy, RecurrentInputs(weights, conv, h, where))
    expected, _, expected_h = recurrent_block_reference(np.float32(xy), *wide(*weights), np.float32(conv), h, where)
    close(np.float32(out), expected)
    close(new_h, expected_h)


@blocks_of_32_rows()
def gated_mlp(run: Run) -> None:
    """Two blocks of rows, and two tiles of hidden channels."""
    rows, width, hidden = 64, 512, 512
    x, gate_up, down = draw(1, rows, width), draw(2, 2 * hidden, width) / 25, draw(3, width, hidden) / 25
    gate_up, down = gate_up.astype(jnp.bfloat16), down.astype(jnp.bfloat16)
    biases = np.float32(draw(4, 2 * hidden)), np.float32(draw(5, width))
    expected = gated_mlp_reference(*wide(x, gate_up), biases[0], *wide(down), biases[1])
    close(np.float32(run(gated_mlp_tpu, x, gate_up, biases[0], down, biases[1])), expected)


@blocks_of_32_rows()
def int8_gated_mlp(run: Run) -> None:
    """Two blocks of rows, and two tiles of each matrix."""
    rows, width, hidden = 64, 512, 512
    rng = np.random.default_rng(0)
    x = draw_float32(rng, rows, width)  # bfloat16 has halves of steps, which the reference may round to another step
    gate_up, down = int8_matrix(rng, 2 * hidden, width), int8_matrix(rng, width, hidden)
    (*both, both_bias), (*out, out_bias) = gate_up, down
    found = run(int8_gated_mlp_tpu, x, Int8Matrix(*both), both_bias, Int8Matrix(*out), out_bias)
    close(found, int8_gated_mlp_reference(x, *gate_up, *down)[0])


@blocks_of_32_rows()
def int8_product(run: Run) -> None:
    """Two blocks of rows with five pieces each, and two tiles of the matrix."""
    x, matrix = draw(1, 64, WIDTH), int8_matrix(np.random.default_rng(0), 1024, WIDTH)
    found = run(partial(int8_product_tpu, dtype=jnp.dtype("float32")), x, Int8Matrix(*matrix[:2]), matrix[2])
    close(found, int8_product_reference(np.float32(x), *matrix))


@blocks_of_32_rows()
def argmax(run: Run) -> None:
    """Two blocks of rows, and three tiles of the matrix, the last one not whole."""
    x, weight = draw(1, 64, WIDTH), draw(2, 1152, WIDTH)
    logits = np.float32(x) @ np.float32(weight).T
    np.testing.assert_array_equal(run(partial(argmax_tpu, cap=None), x, weight), logits.argmax(axis=1))


def sample(run: Run) -> None:
    """Two blocks of rows with two chunks of logits each; the likeliest of the drawn tokens is the only one left."""
    vocab = 10_500
    logits = np.float32(draw(1, 16, vocab))
    numbers = {"top_k": 1.0, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9}
    inputs = inputs_of(16, vocab, temperature=np.arange(16) % 2, **numbers)
    tokens, best = run(sample_tpu, logits, inputs)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
    np.testing.assert_array_equal(best, logits.max(axis=1))


COPYING = {"decode": decode, "decode_int8": partial(decode, is_int8=True)}
"""Kernels that start copies themselves, and so wait for them."""

STREAMED = {
    "prefill": prefill,
    "recurrent_step": recurrent_step,
    "recurrent_chunk": recurrent_chunk,
    "gated_mlp": gated_mlp,
    "int8_gated_mlp": int8_gated_mlp,
    "int8_product": int8_product,
    "argmax": argmax,
}
"""Kernels whose copies are all made for their blocks."""

LONG = {"prefill_int8": partial(prefill, is_int8=True), "sample": sample}
"""More of them, which take longer."""
