"""Masks and constraints of a request's sampling parameters."""

from collections.abc import Iterable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from roost.engine.types.output_constraint import (
    BadPhrases,
    Constraint,
    StaticMask,
    TokenMask,
    joined_constraint,
    mask_of_ids,
    phrase_index,
    words_of_mask,
)
from roost.engine.types.sampling_params import SamplingParams

VOCAB = 70
WORDS = words_of_mask(VOCAB)


def ids_in(mask: TokenMask) -> set[int]:
    return {i for i in range(VOCAB) if mask[i // 32] >> (i % 32) & 1}


def allowed_by(constraint: Constraint) -> set[int]:
    mask = np.zeros(WORDS, np.uint32)
    constraint.fill_mask(mask)
    return ids_in(mask)


@given(st.sets(st.integers(0, VOCAB - 1)))
def test_mask_has_a_bit_for_each_token(ids: set[int]) -> None:
    assert ids_in(mask_of_ids(ids, WORDS)) == ids


def static_mask(params: SamplingParams) -> set[int] | None:
    return None if params.static_mask is None else ids_in(params.static_mask.mask(WORDS))


def test_static_mask_combines_allowed_and_banned_ids() -> None:
    assert static_mask(SamplingParams(bad_words=((1, 2),))) is None
    assert static_mask(SamplingParams(allowed_token_ids=(3, 40, 3), bad_words=((40,), (1, 2)))) == {3}
    assert static_mask(SamplingParams(bad_words=((40,), (69,)))) == set(range(VOCAB)) - {40, 69}


@given(
    allowed=st.none() | st.sets(st.integers(0, 2 * VOCAB), min_size=1, max_size=9),
    banned=st.sets(st.integers(0, 2 * VOCAB), max_size=9),
)
def test_static_mask_fits_every_vocabulary(allowed: set[int] | None, banned: set[int]) -> None:
    """Ids beyond the vocabulary have no effect."""
    everything = set(range(VOCAB))
    expected = ((everything if allowed is None else allowed) - banned) & everything
    mask = StaticMask.of(allowed, banned)
    assert ids_in(mask.mask(WORDS)) == expected
    assert mask.is_empty() == (allowed is not None and not allowed - banned)
    assert mask.is_empty({3, 69, 999}) == (allowed is not None and not allowed - banned - {3, 69})


def walk(constraint: Constraint, tokens: Iterable[int]) -> None:
    for token in tokens:
        constraint.advance(token)


def test_phrase_is_banned_at_its_last_token() -> None:
    phrases = BadPhrases(phrase_index([(1, 2), (5, 1, 3)]))
    everything = set(range(VOCAB))
    assert allowed_by(phrases) == everything
    walk(phrases, [1])
    assert allowed_by(phrases) == everything - {2}
    walk(phrases, [5, 1])
    assert allowed_by(phrases) == everything - {2, 3}
    walk(phrases, [9])
    assert allowed_by(phrases) == everything


FEW = st.integers(0, 2)
"""A few different tokens, so that phrases overlap."""


@given(
    phrases=st.lists(st.lists(FEW, min_size=2, max_size=6).map(tuple), min_size=1, max_size=9),
    text=st.lists(FEW | st.just(VOCAB - 1), max_size=30),
)
def test_overlapping_phrases_are_banned(phrases: list[tuple[int, ...]], text: list[int]) -> None:
    constraint = BadPhrases(phrase_index(phrases))
    for count in range(len(text) + 1):
        so_far = tuple(text[:count])
        banned = {phrase[-1] for phrase in phrases if so_far[count - len(phrase) + 1 :] == phrase[:-1]}
        assert allowed_by(constraint) == set(range(VOCAB)) - banned
        walk(constraint, text[count : count + 1])


class CountedLookups(dict[tuple[int, ...], Sequence[int]]):
    """Last tokens of phrases of one length, which counts look-ups."""

    count = 0

    def get(self, key: Any, default: Any = None) -> Any:
        CountedLookups.count += 1
        return super().get(key, default)


def test_cost_of_a_mask_grows_with_the_lengths_of_phrases_alone() -> None:
    """The text repeats the prefix of one of 3,000 phrases, and parts of prefixes of most."""
    phrases = [(1, 1, n, 3) for n in range(1000)] + [(1, n, 3) for n in range(2000)]
    index = {length: CountedLookups(lasts) for length, lasts in phrase_index(phrases).items()}
    constraint = BadPhrases(index)
    walk(constraint, [1] * 50)
    CountedLookups.count = 0
    assert allowed_by(constraint) == set(range(VOCAB)) - {3}
    assert CountedLookups.count == 2


class Evens:
    """Constraint that allows even tokens, and counts the tokens that came."""

    def __init__(self) -> None:
        self.count = 0

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = mask_of_ids(range(0, VOCAB, 2), len(mask))

    def advance(self, token_id: int) -> None:
        self.count += 1


def test_request_has_one_combined_constraint() -> None:
    evens = Evens()
    bad = SamplingParams(bad_words=((4, 6), (8,)))
    assert joined_constraint(None, SamplingParams(bad_words=((8,),)).bad_phrases) is None
    assert joined_constraint(evens, None) is evens
    both = joined_constraint(evens, bad.bad_phrases)
    assert both is not None
    walk(both, [4])
    assert allowed_by(both) == set(range(0, VOCAB, 2)) - {6}
    assert evens.count == 1
