"""Imported states are found by the tokens that prompts begin with."""

import sys
from types import FrameType
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from roost.engine import SavedState, Snapshot
from roost.server.generation.state_store import Prefix, StateStore
from unpacked_states import saved_state

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple)


def state_of(tokens: tuple[int, ...]) -> SavedState:
    nothing = np.zeros(0, np.float32)
    return saved_state((*tokens, 9), Snapshot(len(tokens), (nothing, nothing), ()))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), TOKENS), max_size=8), TOKENS, st.data())
def test_longest_is_that_of_a_search_through_all(
    added: list[tuple[str, str, tuple[int, ...]]], prompt: tuple[int, ...], data: st.DataObject
) -> None:
    store, left = StateStore(), dict(enumerate(added))
    stored = []
    for owner, salt, tokens in added:
        state = state_of(tokens)
        stored.append(store.keep(state, owner, 2**30, Prefix.of(state, salt)))
        store.keep(state, owner, 2**30)  # found by its id only
    for number in data.draw(st.sets(st.sampled_from(sorted(left)))) if left else ():
        owner, _, _ = left.pop(number)
        store.delete(stored[number].id, owner)
    for owner in "ab":
        fitting = [
            (len(tokens), number)
            for number, (its_owner, salt, tokens) in left.items()
            if (its_owner, salt) == (owner, "x") and len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens
        ]
        assert store.imported(owner, "x", prompt) == (stored[max(fitting)[1]] if fitting else None)


def test_a_state_without_a_snapshot_has_no_prefix() -> None:
    assert Prefix.of(saved_state((5, 6)), "") is None


def num_lines_of_search(num_states: int) -> int:
    """Returns how many lines of Python run until a prompt's state is found among others."""
    store, count = StateStore(), 0
    for number in range(num_states):
        state = state_of((number, 1))
        store.keep(state, "", 2**30, Prefix.of(state, ""))

    def trace(_: FrameType, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        stored = store.imported("", "", (3, 1, 5))
    finally:
        sys.settrace(before)
    assert stored is not None
    assert stored.state.token_ids[0] == 3
    return count


def test_the_time_of_a_search_does_not_depend_on_the_number_of_states() -> None:
    assert num_lines_of_search(500) == num_lines_of_search(5)
