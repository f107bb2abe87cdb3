"""Masks and constraints that come from a request's parameters."""

from collections.abc import Iterable

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from roost.engine.constraint import Constraint, TokenMask, mask_of_ids, words_of_mask
from roost.engine.masks import BadPhrases, constraint_of, static_mask
from roost.engine.request import Request, SamplingParams

VOCAB = 70
WORDS = words_of_mask(VOCAB)


def ids_in(mask: TokenMask) -> set[int]:
    return {i for i in range(VOCAB) if mask[i // 32] >> (i % 32) & 1}


def allowed_by(constraint: Constraint) -> set[int]:
    mask = np.zeros(WORDS, np.uint32)
    constraint.fill_mask(mask)
    return ids_in(mask)


@given(st.sets(st.integers(0, VOCAB - 1)))
def test_a_mask_has_a_bit_for_each_token(ids: set[int]) -> None:
    assert ids_in(mask_of_ids(ids, WORDS)) == ids


def test_what_never_changes_is_one_mask() -> None:
    assert static_mask(SamplingParams(bad_words=((1, 2),)), WORDS) is None
    only = static_mask(SamplingParams(allowed_token_ids=(3, 40), bad_words=((40,), (1, 2))), WORDS)
    assert only is not None
    assert ids_in(only) == {3}
    rest = static_mask(SamplingParams(bad_words=((40,), (69,))), WORDS)
    assert rest is not None
    assert ids_in(rest) == set(range(VOCAB)) - {40, 69}


def walk(constraint: Constraint, tokens: Iterable[int]) -> None:
    for token in tokens:
        constraint.advance(token)


def test_a_phrase_is_stopped_at_its_last_token() -> None:
    phrases = BadPhrases([(1, 2), (5, 1, 3)])
    everything = set(range(VOCAB))
    assert allowed_by(phrases) == everything
    walk(phrases, [1])
    assert allowed_by(phrases) == everything - {2}
    walk(phrases, [5, 1])
    assert allowed_by(phrases) == everything - {2, 3}
    walk(phrases, [9])
    assert allowed_by(phrases) == everything


class Evens:
    """Allows even tokens, and counts those that came."""

    def __init__(self) -> None:
        self.count = 0

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = mask_of_ids(range(0, VOCAB, 2), len(mask))

    def advance(self, token_id: int) -> None:
        self.count += 1


def test_a_request_has_one_constraint() -> None:
    evens = Evens()
    bad = SamplingParams(bad_words=((4, 6), (8,)))
    assert constraint_of(Request("a", (1,), SamplingParams(bad_words=((8,),)))) is None
    assert constraint_of(Request("a", (1,), constraint=evens)) is evens
    both = constraint_of(Request("a", (1,), bad, constraint=evens))
    assert both is not None
    walk(both, [4])
    assert allowed_by(both) == set(range(0, VOCAB, 2)) - {6}
    assert evens.count == 1
