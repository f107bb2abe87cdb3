"""Drafts by matches in a row's own tokens, and how their number follows from what was accepted."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.model import speculation
from roost.engine.model.speculation import (
    Drafts,
    DraftState,
    accept,
    new_draft_state,
    record,
    with_forced,
    within,
    zero_draft_state,
)
from roost.engine.types.config import HISTORY, DraftCounts, PredictionUse, Speculation
from roost.engine.types.errors import ConfigError
from roost.engine.types.sampling_params import NO_TOKEN

propose, learn = jax.jit(speculation.propose, static_argnums=3), jax.jit(speculation.learn, static_argnums=4)
SETTINGS = Speculation(4, min_match=2, max_match=3)


def int32(*values: int) -> jnp.ndarray:
    return jnp.array(values, jnp.int32)


def state_of(rows: Sequence[Sequence[int]]) -> DraftState:
    """Rows with these tokens, of which four may be drafted."""
    history = zero_draft_state(len(rows)).history
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, own in zip(tokens, rows, strict=True):
        row[: len(own)] = own
    history = record(history, jnp.array(tokens), int32(*[0] * len(rows)), int32(*map(len, rows)))
    return new_draft_state(history)._replace(depth=int32(*[4] * len(rows)))


def drafts_of(*rows: Sequence[int], limit: int = 9) -> list[list[int]]:
    positions, limits = int32(*(len(row) - 1 for row in rows)), int32(*[limit] * len(rows))
    drafts = propose(state_of(rows), positions, limits, SETTINGS)
    tokens, counts = np.asarray(drafts.tokens), np.asarray(drafts.counts)
    return [own[:count].tolist() for own, count in zip(tokens, counts, strict=True)]


def long_state(tokens: Sequence[int], first: int = 0) -> DraftState:
    """A row with more tokens than its history has, from the first of them that it ever had."""
    history = np.full((1, HISTORY), -1, np.int32)
    for position in range(first, len(tokens)):
        history[0, position % HISTORY] = tokens[position]
    return new_draft_state(jnp.array(history))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2], [3, 4, 5, 6]),
        ([1, 2, 9, 8, 1, 2, 7, 6, 5, 4, 1, 2], [7, 6, 5, 4]),  # the later of two
        ([9, 1, 2, 7, 7, 7, 7, 5, 1, 2, 8, 8, 8, 8, 9, 1, 2], [7, 7, 7, 7]),  # the longer of two
        ([1, 2, 3, 4, 2], []),  # one token is too few
        ([1, 2, 1, 2, 1], [2, 1, 2, 1]),  # goes on periodically
        ([5, 5, 5], [5, 5, 5, 5]),
        ([7], []),
        ([1, 2], []),
    ],
)
def test_the_draft_is_what_followed_the_last_tokens(tokens: list[int], expected: list[int]) -> None:
    assert drafts_of(tokens) == [expected]


def test_a_draft_says_where_it_comes_from() -> None:
    positions = int32(5, 11)
    state = state_of([[1, 2, 3, 4, 1, 2], [1, 2, 9, 8, 1, 2, 7, 6, 5, 4, 1, 2]])
    assert propose(state, positions, int32(9, 9), SETTINGS).starts.tolist() == [2, 6]


def test_rows_are_independent_and_limited() -> None:
    repeat, other = [1, 2, 3, 4, 1, 2], [5, 6, 7]
    assert drafts_of(repeat, other, repeat) == [[3, 4, 1, 2], [], [3, 4, 1, 2]]
    assert drafts_of(repeat, limit=2) == [[3, 4]]
    assert drafts_of(repeat, limit=-3) == [[]]


@pytest.mark.parametrize("position", [HISTORY - 3, HISTORY - 1, HISTORY, 3 * HISTORY + 1])
def test_a_match_is_found_across_the_end_of_the_ring(position: int) -> None:
    tokens = [1, 2, 3, 4, 5, 1, 2]
    before = zero_draft_state(1).history
    history = record(before, jnp.array([tokens], jnp.int32), int32(position), int32(len(tokens)))
    state = new_draft_state(history)._replace(depth=int32(2))
    drafts = propose(state, int32(position + len(tokens) - 1), int32(4), SETTINGS)
    assert np.asarray(drafts.tokens)[0, : int(drafts.counts[0])].tolist() == [3, 4]


def test_a_match_further_back_than_the_history_is_forgotten() -> None:
    rng = np.random.default_rng(0)
    far = [1, 2, 3, *rng.permutation(np.arange(10, HISTORY + 6)).tolist(), 1, 2]
    assert len(far) > HISTORY
    drafts = propose(long_state(far), int32(len(far) - 1), int32(4), SETTINGS)
    assert not drafts.is_guessed[0]


def test_a_match_that_lies_across_the_end_of_the_history_is_as_long_as_what_is_left_of_it() -> None:
    """Columns behind the end have the latest tokens, which are not those before the oldest."""
    tokens = [1, 2, *range(10, HISTORY + 7), 1, 2]
    for first, is_guessed in ((1, True), (3, False)):
        assert len(tokens) - 1 == HISTORY
        state, settings = long_state(tokens, first), Speculation(4, min_match=1, max_match=3)
        drafts = propose(state, int32(len(tokens) - 1), int32(4), settings)
        assert bool(drafts.is_guessed[0]) == is_guessed


def after(depth: int, drafted: int, sampled: int, accepted: int = 0, *, is_guessed: bool = True) -> int:
    """Depth after a round that guessed token 4, drafted some tokens and accepted some of them."""
    drafts = Drafts(int32(4, 4, 4, 4)[None], int32(drafted), jnp.array([is_guessed]), int32(0), int32(0))
    return int(learn(int32(depth), drafts, int32(sampled), int32(accepted), SETTINGS)[0])


def test_depth_doubles_on_hits_and_falls_to_what_was_accepted() -> None:
    depth, depths = 2, []
    for drafted, accepted in ((2, 2), (4, 4), (4, 3), (3, 3), (4, 1), (1, 1)):
        depth = after(depth, drafted, 4, accepted)
        depths.append(depth)
    assert depths == [4, 4, 3, 4, 1, 2]


def test_after_a_miss_tokens_are_drafted_again_once_some_guesses_in_a_row_were_right() -> None:
    depths = [after(4, 4, 5)]
    for sampled in (4, 5, 4, 4, 4):
        depths.append(after(depths[-1], 0, sampled))
    assert depths == [-2, -1, -2, -1, 0, 2]


def test_a_new_request_drafts_at_its_first_guess() -> None:
    depth = zero_draft_state(1).depth
    drafts = propose(state_of([[1, 2, 3, 4, 1, 2]])._replace(depth=depth), int32(5), int32(4), SETTINGS)
    assert (bool(drafts.is_guessed[0]), int(drafts.counts[0])) == (True, 2)


def test_a_round_without_a_guess_changes_nothing() -> None:
    assert [after(depth, 0, 4, is_guessed=False) for depth in (-2, 0, 3)] == [-2, 0, 3]


def test_a_right_guess_without_room_for_drafts_keeps_the_depth() -> None:
    assert after(4, 0, 4) == 4


def test_drafts_beyond_a_rounds_size_are_cut_from_the_last_rows() -> None:
    assert within(int32(3, 0, 2, 4), jnp.int32(6)).tolist() == [3, 0, 2, 1]
    assert within(int32(3, 1), jnp.int32(0)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("draft", "sampled", "ends", "accepted", "last"),
    [
        ([4, 5, 6], [4, 5, 6, 7], [], 3, 3),
        ([4, 5, 6], [4, 9, 6, 7], [], 1, 1),
        ([4, 5, 6], [8, 5, 6, 7], [], 0, 0),
        ([4, 5, 6], [4, 5, 6, 7], [1], 2, 1),  # the draft itself ends the request
        ([4, 5, 6], [4, 9, 6, 7], [1], 1, 1),
        ([4, 5, 6], [-1, 5, 6, 7], [0], 0, 0),  # a sentinel
        ([], [4, 4, 4, 4], [], 0, 0),
        ([4], [4, 5, 5, 5], [1], 1, 1),
    ],
)
def test_samples_are_kept_up_to_the_first_that_differs(
    draft: list[int], sampled: list[int], ends: list[int], accepted: int, last: int
) -> None:
    tokens = jnp.array([[*draft, *[4] * (3 - len(draft))]], jnp.int32)
    drafts = Drafts(tokens, int32(len(draft)), jnp.array([True]), int32(0), int32(0))
    are_ends = jnp.array([[place in ends for place in range(4)]])
    result = accept(drafts, jnp.array([sampled], jnp.int32), are_ends)
    assert (int(result.counts[0]), int(result.last[0])) == (accepted, last)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0,), "num_speculative_tokens must be from 1 to 31, got 0"),
        ((32,), "num_speculative_tokens must be from 1 to 31, got 32"),
        ((4, 0), r"prompt_lookup_min must be from 1 to prompt_lookup_max \(5\), got 0"),
        ((4, 4, 3), r"prompt_lookup_min must be from 1 to prompt_lookup_max \(3\), got 4"),
        ((4, 2, 17), "prompt_lookup_max must be at most 16, got 17"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Speculation(*numbers)


def test_a_token_of_a_prediction_counts_once() -> None:
    use = PredictionUse(0b0111, 0b0001).plus(PredictionUse(0b1110, 0b0010)).plus(PredictionUse(0b0001, 0))
    assert (use.num_accepted, use.num_rejected) == (2, 2)


def test_counts_add_up() -> None:
    total = DraftCounts(accepted=(0, 0)).plus(DraftCounts(2, 4, (2, 1))).plus(DraftCounts(1, 2, (1, 0)))
    assert total == DraftCounts(3, 6, (3, 1))


def test_forced_tokens_are_drafted_instead_of_guesses() -> None:
    """The first row has two, and room for one of them."""
    tokens, forced = jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([[7, 8, NO_TOKEN], [NO_TOKEN] * 3])
    guesses = Drafts(tokens, int32(0, 2), jnp.array([False, True]), int32(0, 5), int32(0, 0))
    drafts = with_forced(guesses, forced, int32(9, 9), int32(1, 3))
    assert drafts.tokens.tolist() == [[7, 8, NO_TOKEN], [4, 5, 6]]
    assert drafts.is_guessed.tolist() == [False, True]
    assert (drafts.counts.tolist(), drafts.num_forced.tolist(), drafts.starts.tolist()) == (
        [1, 2],
        [2, 0],
        [10, 5],
    )
