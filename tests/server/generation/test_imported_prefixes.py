"""Imported states are found by the tokens that prompts begin with."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from roost.engine import SavedState, Snapshot
from roost.server.generation.state_store import ImportedPrefixes, Prefix

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)


def prefix(tokens: tuple[int, ...], salt: str) -> Prefix:
    nothing = np.zeros(0, np.float32)
    found = Prefix.of(SavedState.of((*tokens, 9), Snapshot(len(tokens), (nothing, nothing), ())), salt)
    assert found is not None
    return found


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), TOKENS), max_size=8), TOKENS, st.data())
def test_longest_is_that_of_a_search_through_all(
    added: list[tuple[str, str, tuple[int, ...]]], prompt: tuple[int, ...], data: st.DataObject
) -> None:
    index, left = ImportedPrefixes(), dict(enumerate(added))
    for number, (owner, salt, tokens) in left.items():
        index.add(owner, prefix(tokens, salt), str(number))
    for number in data.draw(st.sets(st.sampled_from(sorted(left)))) if left else ():
        owner, salt, tokens = left.pop(number)
        index.remove(owner, prefix(tokens, salt), str(number))
    for owner in "ab":
        fitting = [
            (len(tokens), number)
            for number, (its_owner, salt, tokens) in left.items()
            if (its_owner, salt) == (owner, "x") and len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens
        ]
        assert index.longest(owner, "x", prompt) == (str(max(fitting)[1]) if fitting else None)


def test_a_state_without_a_snapshot_has_no_prefix() -> None:
    assert Prefix.of(SavedState.of((5, 6)), "") is None
