"""Properties of every Griffin: equal to its reference, and unchanged by chunking, other rows and padding."""

import math
from dataclasses import replace
from decimal import Decimal, localcontext
from functools import cache, partial

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from reference_griffin import reference_logits
from roost.engine.model.config import ModelConfig, cycle
from roost.engine.model.layers import rope_angles
from roost.engine.model.slot_states import SlotStates
from roost.engine.model.state import ModelState
from roost.engine.types.config import PREFILL_BLOCK
from small_models import CPU_OPTIONS, SmallModel, counting, noisy_model, ragged, row_of
from sweeps import examples, full, swept

ROWS, STEPS, BLOCK = 2, 24, 4
"""Rows, steps and block size of the tests that draw lengths and chunk boundaries within one shape."""

BASE = ModelConfig(
    vocab_size=96,
    width=32,
    mlp_width=48,
    num_heads=2,
    lru_width=48,
    block_types=cycle(("recurrent", "attention"), 3),
    window=7,
)
"""Config with a depth that is not a multiple of the pattern, E greater than D, and a window not a power of two."""

VARIANTS = {
    "base": BASE,
    "narrow, two taps, one head, no cap, unscaled": replace(
        BASE,
        block_types=("attention", "recurrent"),
        num_heads=1,
        lru_width=16,
        conv_width=2,
        logits_soft_cap=0.0,
        scale_embeddings=False,
    ),
}

ONE_CHANGE = {
    "recurrent only, narrow, two taps": replace(BASE, block_types=("recurrent",) * 2, lru_width=16, conv_width=2),
    "attention only, one head": replace(BASE, block_types=("attention",) * 2, num_heads=1),
    "no cap, unscaled": replace(
        BASE, block_types=("attention", "recurrent"), logits_soft_cap=0.0, scale_embeddings=False
    ),
    "two key heads of four": replace(BASE, block_types=("attention", "recurrent"), num_heads=4, num_key_heads=2),
    "as many key heads as heads": replace(BASE, block_types=("attention", "recurrent"), num_key_heads=2),
}
"""Configs that find the field at fault; `test_key_heads` has several key heads by default."""

LENGTHS = st.lists(st.integers(0, STEPS), min_size=ROWS, max_size=ROWS)
TOKENS = hnp.arrays(np.int32, (ROWS, STEPS), elements=st.integers(0, BASE.vocab_size - 1))

close = partial(np.testing.assert_allclose, rtol=0, atol=5e-4)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def any_model(request: pytest.FixtureRequest) -> SmallModel:
    return noisy_model(BASE, request.param, BLOCK)


@pytest.fixture(scope="module")
def model() -> SmallModel:
    return noisy_model(BASE, block=BLOCK)


def equal_row(state: ModelState, row: int, expected: ModelState, expected_row: int) -> None:
    for one, other in zip(row_of(state, row), row_of(expected, expected_row), strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other.astype(np.float32))


def read_in_chunks(
    model: SmallModel, tokens: np.ndarray, lengths: list[int], cuts: list[int]
) -> tuple[list[np.ndarray], ModelState]:
    """Returns each row's logits and the state after prefill in chunks that end at the cuts, padded to `STEPS`."""
    state, logits = model.zero(ROWS), [np.zeros((0, BASE.vocab_size), np.float32)] * ROWS
    for start, stop in zip([0, *cuts], [*cuts, STEPS], strict=True):
        sizes = [max(min(n, stop) - start, 0) for n in lengths]
        chunk = ragged([row[start : start + n] for row, n in zip(tokens, sizes, strict=True)], STEPS)
        out, state = model.run(chunk, counting(sizes, STEPS, [start] * ROWS), state)
        logits = [np.concatenate([so_far, new[:n]]) for so_far, new, n in zip(logits, out, sizes, strict=True)]
    return logits, state


@pytest.mark.parametrize(
    "config", [*VARIANTS.values(), *full(*ONE_CHANGE.values())], ids=[*VARIANTS.keys(), *ONE_CHANGE.keys()]
)
def test_equals_the_oracle(config: ModelConfig) -> None:
    """Chunks longer than the window, whose later blocks read the ring."""
    model, rng = noisy_model(config, block=BLOCK, seed=1), np.random.default_rng(2)
    tokens = rng.integers(0, config.vocab_size, (ROWS, STEPS), np.int32)
    logits, _ = model.run(tokens, counting([STEPS] * ROWS, STEPS), model.zero(ROWS))
    for row in range(ROWS):
        close(logits[row], reference_logits(config, model.params, tokens[row]))


def test_single_steps_equal_the_oracle(model: SmallModel) -> None:
    tokens = np.random.default_rng(3).integers(0, BASE.vocab_size, (ROWS, STEPS), np.int32)
    expected, state = [reference_logits(BASE, model.params, row) for row in tokens], model.zero(ROWS)
    for t in range(STEPS):
        logits, state = model.run(tokens[:, t : t + 1], np.full((ROWS, 1), t, np.int32), state)
        close(logits[:, 0], [row[t] for row in expected])


@given(tokens=TOKENS, lengths=LENGTHS, cuts=st.sets(st.integers(1, STEPS - 1), max_size=4))
@examples(10, sweep=25)
def test_any_cuts_equal_one_pass(model: SmallModel, tokens: np.ndarray, lengths: list[int], cuts: set[int]) -> None:
    logits, state = read_in_chunks(model, tokens, lengths, sorted(cuts))
    whole, whole_state = read_in_chunks(model, tokens, lengths, [])
    for row in range(ROWS):
        close(logits[row], whole[row])
        for one, other in zip(row_of(state, row), row_of(whole_state, row), strict=True):
            close(one, other)


@given(tokens=TOKENS, lengths=LENGTHS, blocks=st.sets(st.integers(1, STEPS // BLOCK - 1)))
@examples(10, sweep=25)
def test_cuts_on_the_grid_equal_one_pass_bit_for_bit(
    any_model: SmallModel, tokens: np.ndarray, lengths: list[int], blocks: set[int]
) -> None:
    logits, state = read_in_chunks(any_model, tokens, lengths, [BLOCK * b for b in sorted(blocks)])
    whole, whole_state = read_in_chunks(any_model, tokens, lengths, [])
    for row in range(ROWS):
        np.testing.assert_array_equal(logits[row], whole[row])
        equal_row(state, row, whole_state, row)


@pytest.mark.parametrize("any_model", ["bfloat16", *full("float32")], indirect=True)
def test_chunks_of_another_compiled_length_give_the_same_bits(any_model: SmallModel) -> None:
    """Chunks at block boundaries, by a program for shorter chunks."""
    tokens = np.random.default_rng(4).integers(0, BASE.vocab_size, (ROWS, STEPS), np.int32)
    whole, whole_state = any_model.run(tokens, counting([STEPS] * ROWS, STEPS), any_model.zero(ROWS))
    state, parts, length = any_model.zero(ROWS), [], 2 * BLOCK
    for start in range(0, STEPS, length):
        positions = counting([length] * ROWS, length, [start] * ROWS)
        logits, state = any_model.run(tokens[:, start : start + length], positions, state)
        parts.append(logits)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    for row in range(ROWS):
        equal_row(state, row, whole_state, row)


moved = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles what moves numbers and computes none, however slowly it runs."""


@moved
def gather(states: SlotStates, slots: jax.Array, fresh: jax.Array) -> ModelState:
    return states.gather(slots, fresh)


@pytest.mark.parametrize("dtype", [*swept("float32"), "bfloat16"])
@pytest.mark.parametrize(
    ("steps", "fewer"),
    [(1, [3, 1]), (1, [2]), (16, [3]), *full((16, [2, 0]), (PREFILL_BLOCK, [2, 0]), (PREFILL_BLOCK, [3]))],
)
def test_a_row_gives_the_same_bits_in_a_batch_of_any_size(dtype: str, steps: int, fewer: list[int]) -> None:
    """Four rows at four positions, and some of them again."""
    model = noisy_model(replace(BASE, block_types=("recurrent", "attention")), dtype, max(steps, 16))
    rng, rows = np.random.default_rng(5), 4
    pool = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), model.zero(rows))
    tokens = rng.integers(0, BASE.vocab_size, (rows, steps), np.int32)
    positions = counting([steps] * rows, steps, [8, 3, 64, 1])
    expected, expected_state = model.run(tokens, positions, pool)
    part = gather(SlotStates(pool), np.array(fewer, np.int32), np.zeros(len(fewer), np.bool))
    logits, state = model.run(tokens[fewer], positions[fewer], part)
    np.testing.assert_array_equal(logits, expected[fewer])
    for index, row in enumerate(fewer):
        equal_row(state, index, expected_state, row)


@given(tokens=TOKENS, lengths=LENGTHS, filler=st.integers(0, BASE.vocab_size - 1))
@examples(10, sweep=25)
def test_padding_changes_nothing(model: SmallModel, tokens: np.ndarray, lengths: list[int], filler: int) -> None:
    """Token ids in padding have no effect, and a row of padding keeps its state."""
    positions = counting(lengths, STEPS, [30] * ROWS)
    _, past = model.run(tokens, counting([STEPS] * ROWS, STEPS), model.zero(ROWS))
    logits, state = model.run(tokens, positions, past)
    filled = np.where(positions < 0, np.int32(filler), tokens)
    other_logits, other_state = model.run(filled, positions, past)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(other_logits[row, :length], logits[row, :length])
        equal_row(other_state, row, state, row)
        if length == 0:
            equal_row(state, row, past, row)


def test_an_idle_row_of_a_decode_step_keeps_its_state(model: SmallModel) -> None:
    tokens = np.full((ROWS, STEPS), 5, np.int32)
    _, past = model.run(tokens, counting([STEPS, 9], STEPS), model.zero(ROWS))
    _, state = model.run(tokens[:, :1], np.array([[STEPS], [-1]], np.int32), past)
    equal_row(state, 1, past, 1)
    assert any((a != b).any() for a, b in zip(row_of(state, 0), row_of(past, 0), strict=True))


def test_a_fresh_row_reads_nothing_of_the_previous_sequence(model: SmallModel) -> None:
    """A fresh row is zeros even if the slot held NaN."""
    tokens = np.arange(ROWS * STEPS, dtype=np.int32).reshape(ROWS, STEPS)
    positions = counting([STEPS, 2], STEPS)
    dirty = jax.tree.map(lambda x: np.full_like(x, np.nan), model.zero(3))
    fresh = gather(SlotStates(dirty), np.array([2, 0], np.int32), np.ones(2, np.bool))
    logits, state = model.run(tokens, positions, fresh)
    expected, expected_state = model.run(tokens, positions, model.zero(ROWS))
    for row, length in enumerate((STEPS, 2)):
        np.testing.assert_array_equal(logits[row, :length], expected[row, :length])
        equal_row(state, row, expected_state, row)


scatter, copy = moved(SlotStates.scatter), moved(SlotStates.copy)


def random_pool(model: SmallModel, seed: int) -> SlotStates:
    """Returns a pool of four rows."""
    rng = np.random.default_rng(seed)
    return SlotStates(jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), model.zero(4)))


@given(rows=st.lists(st.sampled_from([0, 1, 2, 3, 4, 9]), min_size=1, max_size=3), fresh=st.booleans())
@examples(8, sweep=20)
def test_gather_copies_or_clears(model: SmallModel, rows: list[int], fresh: bool) -> None:
    """Slots 4 and 9 are past the end and read as zeros; the first row may be fresh."""
    pool = random_pool(model, seed=5)
    taken = gather(pool, np.array(rows, np.int32), np.array([fresh] + [False] * (len(rows) - 1)))
    for index, row in enumerate(rows):
        if row > 3 or (fresh and index == 0):
            equal_row(taken, index, model.zero(1), 0)
        else:
            equal_row(taken, index, pool.state, row)


@given(rows=st.permutations([0, 1, 2, 3, 4, 9]).map(lambda order: order[:3]), count=st.integers(1, 3))
@examples(8, sweep=20)
def test_scatter_writes_the_slots_named_and_no_others(model: SmallModel, rows: list[int], count: int) -> None:
    """Slots 4 and 9 are past the end and dropped."""
    pool, rows = random_pool(model, seed=6), rows[:count]
    taken = gather(pool, np.arange(count, dtype=np.int32), np.zeros(count, np.bool))
    new = jax.tree.map(lambda x: np.asarray(x) + 1, taken)
    before, after = pool.state, scatter(pool, np.array(rows, np.int32), new).state
    for row in range(4):
        equal_row(after, row, new if row in rows else before, rows.index(row) if row in rows else row)


@given(pairs=st.permutations([0, 1, 2, 3, 9]).map(lambda order: order[:3]), sources=st.permutations(range(4)))
@examples(8, sweep=20)
def test_copy_reads_all_before_it_writes(model: SmallModel, pairs: list[int], sources: list[int]) -> None:
    pool = random_pool(model, seed=8)
    copied = copy(pool, np.array(sources[:3], np.int32), np.array(pairs, np.int32))
    before, after = pool.state, copied.state
    for row in range(4):
        equal_row(after, row, before, sources[pairs.index(row)] if row in pairs else row)


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
MAX_POSITION = 2**31 - 1
PAIRS = 64
jitted_angles = jax.jit(rope_angles, static_argnums=(1, 2), compiler_options=CPU_OPTIONS)


@cache
def exact_frequency(pair: int, theta: int) -> Decimal:
    """Returns theta^(-pair / PAIRS) with 60 decimal digits."""
    with localcontext(prec=60):
        return Decimal(theta) ** (-Decimal(pair) / PAIRS)


def exact_angle(position: int, pair: int, theta: int) -> float:
    """Returns position * theta^(-pair / PAIRS) modulo 2π, computed with 60 decimal digits."""
    with localcontext(prec=60):
        return float(position * exact_frequency(pair, theta) % (2 * PI))


@pytest.mark.parametrize("theta", [10_000, 500_000])
@given(positions=hnp.arrays(np.int32, (1, 4), elements=st.integers(0, MAX_POSITION) | st.integers(0, 2**20)))
def test_rope_angles_are_exact_at_every_position(theta: int, positions: np.ndarray) -> None:
    positions[0, 0] = MAX_POSITION
    angles = np.asarray(jitted_angles(positions, PAIRS, float(theta)))
    exact = np.array([[exact_angle(int(p), j, theta) for j in range(PAIRS)] for p in positions[0]])
    apart = (angles[0] - exact + math.pi) % (2 * math.pi) - math.pi  # on the circle
    assert np.abs(apart).max() < 1e-6
    assert np.abs(angles).max() <= np.float32(math.pi)
