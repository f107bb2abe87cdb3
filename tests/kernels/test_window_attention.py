"""Window attention against its float64 reference: rings, the W + 1 visible keys, padding and chunking."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import CPU_OPTIONS, SEEDS, cut, positions
from hypothesis import given
from roost.kernels import XLA, Backend
from roost.kernels.backends import CPU_XLA
from roost.kernels.references import window_attention_reference
from roost.kernels.window_attention import (
    Int8Vectors,
    decode_attention,
    prefill_attention,
    quantize,
)
from sweeps import examples, full, swept

ROWS, STEPS, SIZE = 3, 12, 4
POSITIONS = positions(ROWS, STEPS)
SHAPES = [(3, 1, 4, "float32"), (5, 2, 4, "float32"), (16, 3, 6, "float32"), (5, 2, 4, "int8")]
"""(window, heads, block, dtype of keys and values): a window below the block, one between block and chunk, one above
the chunk; one head."""

prefill = jax.jit(prefill_attention, static_argnums=5, compiler_options=CPU_OPTIONS)
decode = jax.jit(decode_attention, static_argnums=5, compiler_options=CPU_OPTIONS)

close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


type Ring = np.ndarray | Int8Vectors
"""Keys or values of all rows."""


@dataclass(frozen=True)
class Case:
    """Draws the arguments of one call except positions; q, k and v are one array `[B, T, N + 2, d]`.

    Keys and values of a case in int8 are quantised before every call, and its queries are in float32.
    """

    qkv: np.ndarray
    rings: tuple[Ring, Ring]
    block: int
    backend: Backend = CPU_XLA

    @classmethod
    def of(cls, seed: int, shape: tuple[int, int, int, str], dtype: str = "") -> "Case":
        rng, (window, heads, block, kind) = np.random.default_rng(seed), (*shape[:3], dtype or shape[3])
        qkv = 2 * rng.normal(size=(ROWS, STEPS, heads + 2, SIZE))
        ring_k, ring_v = rng.normal(size=(2, ROWS, window, SIZE))
        return cls(
            qkv.astype("float32" if kind == "int8" else kind), (stored(ring_k, kind), stored(ring_v, kind)), block
        )

    @property
    def dtype(self) -> str:
        return self.rings[0].dtype.name

    def prefill(self, positions: np.ndarray) -> tuple[np.ndarray, tuple[Ring, Ring]]:
        q, k, v = self.qkv[:, :, :-2], self.qkv[:, :, -2], self.qkv[:, :, -1]
        out, rings = prefill(q, stored(k, self.dtype), stored(v, self.dtype), self.rings, positions, self.block)
        return np.asarray(out), jax.tree.map(np.asarray, rings)

    def decode(self, positions: np.ndarray, t: int) -> tuple[np.ndarray, tuple[Ring, Ring]]:
        """Returns step t alone."""
        q, k, v = self.qkv[:, t, :-2], self.qkv[:, t, -2], self.qkv[:, t, -1]
        stored_k, stored_v = stored(k, self.dtype), stored(v, self.dtype)
        out, rings = decode(q, stored_k, stored_v, self.rings, positions[:, t], self.backend)
        return np.asarray(out), jax.tree.map(np.asarray, rings)

    def reference(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q, k, v = self.qkv[:, :, :-2].astype(np.float32), self.qkv[:, :, -2], self.qkv[:, :, -1]
        seen = (as_floats(x) for x in (stored(k, self.dtype), stored(v, self.dtype), *self.rings))
        return window_attention_reference(q, *seen, positions)


def stored(x: np.ndarray, dtype: str) -> Ring:
    """Keys or values as rings of this dtype hold them."""
    if dtype == "int8":
        return jax.tree.map(np.asarray, quantize_jit(x.astype(np.float32)))
    return x.astype(jnp.dtype(dtype))


quantize_jit = jax.jit(quantize)


def as_floats(ring: Ring) -> np.ndarray:
    """The vectors that queries attend to."""
    if isinstance(ring, Int8Vectors):
        return np.asarray(ring.values) * np.swapaxes(np.asarray(ring.scale), 1, 2)
    return np.asarray(ring).astype(np.float32)


def first_rows(rings: tuple[Ring, Ring], count: int) -> tuple[Ring, Ring]:
    return jax.tree.map(lambda x: x[:count], rings)


def equal_rings(actual: tuple[Ring, Ring], expected: tuple[Ring, Ring]) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(as_floats(one), as_floats(other))


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEEDS, positions=POSITIONS)
@examples(15, sweep=50)
def test_prefill_equals_the_reference(shape: tuple[int, int, int, str], seed: int, positions: np.ndarray) -> None:
    case, valid = Case.of(seed, shape), positions >= 0
    out, rings = case.prefill(positions)
    expected, *expected_rings = case.reference(positions)
    close(out[valid], expected[valid])
    equal_rings(rings, (expected_rings[0], expected_rings[1]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", [XLA, CPU_XLA], ids=lambda backend: backend.name)
@given(seed=SEEDS, positions=POSITIONS)
@examples(10, sweep=100)
def test_single_steps_equal_the_reference(
    shape: tuple[int, int, int, str], backend: Backend, seed: int, positions: np.ndarray
) -> None:
    """A row decodes past its ring's end while idle rows keep theirs, in one batch and row by row."""
    case = replace(Case.of(seed, shape), backend=backend)
    expected, *expected_rings = case.reference(positions)
    for t in range(STEPS):
        out, rings = case.decode(positions, t)
        case, valid = replace(case, rings=rings), positions[:, t] >= 0
        close(out[valid], expected[valid, t])
    equal_rings(case.rings, (expected_rings[0], expected_rings[1]))


@given(seed=SEEDS, positions=POSITIONS)
@examples(15, sweep=50)
def test_bfloat16_differs_by_the_rounding_of_weights_and_values(seed: int, positions: np.ndarray) -> None:
    case, valid = Case.of(seed, SHAPES[1], "bfloat16"), positions >= 0
    out, rings = case.prefill(positions)
    expected, *expected_rings = case.reference(positions)
    np.testing.assert_allclose(out[valid], expected[valid], rtol=0.02, atol=0.03)
    equal_rings(rings, (expected_rings[0], expected_rings[1]))
    assert rings[0].dtype == rings[1].dtype == jnp.bfloat16
    step, _ = case.decode(positions, 0)
    np.testing.assert_allclose(step[valid[:, 0]], expected[valid[:, 0], 0], rtol=0.02, atol=0.03)


@pytest.mark.parametrize("window", [3, *full(16), *swept(5)])
def test_a_query_sees_exactly_its_own_key_and_those_of_the_window_before_it(window: int) -> None:
    """q = 0 weighs all visible keys equally, and one-hot values identify them in the output.

    The key at distance W counts and that at W + 1 does not; in one chunk, in two, and step by step.
    """
    length = 24
    age = np.arange(length)[:, None] - np.arange(length)
    visible = (age >= 0) & (age <= window)
    expected = visible / visible.sum(axis=1, keepdims=True)
    q, k, v = np.zeros((1, length, 1, length)), np.ones((1, length, length)), np.eye(length)[None]
    q, k, v, ring = (x.astype(np.float32) for x in (q, k, v, np.zeros((1, window, length))))
    position = np.arange(length, dtype=np.int32)[None]

    for chunk in (length, length // 2):
        rings, outputs = (ring, ring), []
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            out, rings = prefill(q[:, part], k[:, part], v[:, part], rings, position[:, part], 6)
            outputs.append(out[0, :, 0])
        np.testing.assert_allclose(np.concatenate(outputs), expected, atol=1e-6)

    rings = (ring, ring)
    for t in range(length):
        out, rings = decode(q[:, t], k[:, t], v[:, t], rings, position[:, t], CPU_XLA)
        np.testing.assert_allclose(out[0, 0], expected[t], atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEEDS, positions=POSITIONS, at=st.integers(0, STEPS))
@examples(10, sweep=30)
def test_any_cut_equals_one_pass(shape: tuple[int, int, int, str], seed: int, positions: np.ndarray, at: int) -> None:
    """Chunks agree within rounding, and bit for bit if they are split at block boundaries."""
    case = Case.of(seed, shape)
    whole, rings = case.prefill(positions)
    pieces = [whole[:, :at][positions[:, :at] >= 0], whole[:, at:][positions[:, at:] >= 0]]
    carried, on_grid = case, at % case.block == 0
    for (qkv, part), expected in zip(cut(case.qkv, positions, at), pieces, strict=True):
        out, new_rings = replace(carried, qkv=qkv).prefill(part)
        carried = replace(carried, rings=new_rings)
        (np.testing.assert_array_equal if on_grid else close)(out[part >= 0], expected)
    equal_rings(carried.rings, rings)


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEEDS, positions=POSITIONS, garbage=st.sampled_from([0.0, -1e4, 1e30]))
@examples(8, sweep=20)
def test_padding_is_inert(shape: tuple[int, int, int, str], seed: int, positions: np.ndarray, garbage: float) -> None:
    """Finite numbers in padding have no effect. NaN would, as 0 * NaN, but the model makes none in padding."""
    case, valid = Case.of(seed, shape), positions >= 0
    out, rings = case.prefill(positions)
    qkv = np.where(valid[..., None, None], case.qkv, np.float32(garbage))
    other_out, other_rings = replace(case, qkv=qkv).prefill(positions)
    np.testing.assert_array_equal(other_out[valid], out[valid])
    equal_rings(other_rings, rings)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_padding_keeps_its_ring(shape: tuple[int, int, int, str]) -> None:
    case = Case.of(1, shape)
    nowhere = np.full((ROWS, STEPS), -1, np.int32)
    equal_rings(case.prefill(nowhere)[1], case.rings)
    equal_rings(case.decode(nowhere, 0)[1], case.rings)


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEEDS, positions=POSITIONS)
@examples(8, sweep=20)
def test_rows_of_the_ring_that_are_not_filled_yet_are_never_read(
    shape: tuple[int, int, int, str], seed: int, positions: np.ndarray
) -> None:
    """Unfilled rows are masked by position, whatever they hold."""
    case, window = Case.of(seed, shape), shape[0]
    unfilled = np.arange(window) >= positions[:, :1]

    def spoil(x: np.ndarray) -> np.ndarray:
        garbage = np.int8(127) if x.dtype == np.int8 else x.dtype.type(1e4)
        return np.where(unfilled[..., None] if x.shape[1] == window else unfilled[:, None], garbage, x)

    other, valid = replace(case, rings=jax.tree.map(spoil, case.rings)), positions >= 0
    np.testing.assert_array_equal(other.prefill(positions)[0][valid], case.prefill(positions)[0][valid])
    np.testing.assert_array_equal(other.decode(positions, 0)[0][valid[:, 0]], case.decode(positions, 0)[0][valid[:, 0]])


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=SEEDS, begin=st.integers(0, STEPS))
@examples(8, sweep=20)
def test_documents_in_one_row_do_not_see_each_other(shape: tuple[int, int, int, str], seed: int, begin: int) -> None:
    case = Case.of(seed, shape)
    packed = np.tile(np.r_[np.arange(begin), np.arange(STEPS - begin)].astype(np.int32), (ROWS, 1))
    out, _ = case.prefill(packed)
    expected, *_ = case.reference(packed)
    close(out, expected)


@pytest.mark.parametrize(
    ("start", "dtype"),
    [
        *((start, "float32") for start in (0, 256, 576, 1000)),
        (256, "int8"),
        *full((192, "float32"), (320, "float32"), (512, "float32"), (576, "int8")),
    ],
)
def test_a_long_ring_is_read_as_far_as_it_is_filled(start: int, dtype: str) -> None:
    """Rows at different positions in one batch don't depend on each other, in a chunk or in a step."""
    window, block, steps = 600, 64, 128
    rng = np.random.default_rng(start)
    qkv = (2 * rng.normal(size=(2, steps, 4, SIZE))).astype(np.float32)
    ring_k, ring_v = (stored(ring, dtype) for ring in rng.normal(size=(2, 2, window, SIZE)))
    case = Case(qkv, (ring_k, ring_v), block)
    positions = np.stack([start + np.arange(steps), 700 + np.arange(steps)]).astype(np.int32)
    out, rings = case.prefill(positions)
    expected, *expected_rings = case.reference(positions)
    close(out, expected)
    equal_rings(rings, (expected_rings[0], expected_rings[1]))
    alone = Case(qkv[:1], first_rows(case.rings, 1), block)
    step, written = case.decode(positions, 0)
    close(step, expected[:, 0])
    np.testing.assert_array_equal(alone.decode(positions[:1], 0)[0], step[:1])
    equal_rings(alone.decode(positions[:1], 0)[1], first_rows(written, 1))
    carried = alone.rings
    for at in range(0, steps, block):
        part = slice(at, at + block)
        piece, carried = Case(qkv[:1, part], carried, block).prefill(positions[:1, part])
        np.testing.assert_array_equal(piece[0], out[0, part])
    equal_rings(carried, first_rows(rings, 1))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]])
def test_rows_do_not_depend_on_their_number(shape: tuple[int, int, int, str]) -> None:
    """A row's bits are the same in a batch of two as in one of three."""
    case = Case.of(2, shape)
    positions = np.tile(np.arange(30, 30 + STEPS, dtype=np.int32), (ROWS, 1))
    pair = replace(case, qkv=case.qkv[:2], rings=first_rows(case.rings, 2))
    np.testing.assert_array_equal(pair.prefill(positions[:2])[0], case.prefill(positions)[0][:2])
    np.testing.assert_array_equal(pair.decode(positions[:2], 0)[0], case.decode(positions, 0)[0][:2])


def with_heads(each: Sequence[Any]) -> Any:
    """Returns arrays of several key heads with an axis of them after the rows."""
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *each)


@pytest.mark.parametrize("kind", [*full("float32"), "int8"])
def test_several_key_heads_are_each_as_one_alone(kind: str) -> None:
    """Bit for bit: outputs of the query heads that share a key head, and its ring."""
    cases = [Case.of(seed, (5, 2, 4, kind)) for seed in (1, 2, 3)]
    rings = tuple(with_heads([case.rings[side] for case in cases]) for side in range(2))
    places = np.array([np.arange(STEPS), np.arange(STEPS) + 7, [3, 4, *[-1] * (STEPS - 2)]], np.int32)
    q = np.concatenate([case.qkv[:, :, :-2] for case in cases], axis=2)
    k, v = (with_heads([stored(case.qkv[:, :, side], kind) for case in cases]) for side in (-2, -1))
    out, new = prefill(q, k, v, rings, places, 4)
    expected = [case.prefill(places) for case in cases]
    valid = places >= 0
    np.testing.assert_array_equal(np.asarray(out)[valid], np.concatenate([e for e, _ in expected], axis=2)[valid])
    jax.tree.map(
        np.testing.assert_array_equal, new, tuple(with_heads([e[side] for _, e in expected]) for side in range(2))
    )
    k, v = (with_heads([stored(case.qkv[:, 0, side], kind) for case in cases]) for side in (-2, -1))
    out, new = decode(q[:, 0], k, v, rings, places[:, 0], CPU_XLA)
    expected = [case.decode(places, 0) for case in cases]
    np.testing.assert_array_equal(out, np.concatenate([e for e, _ in expected], axis=1))
    jax.tree.map(
        np.testing.assert_array_equal, new, tuple(with_heads([e[side] for _, e in expected]) for side in range(2))
    )
