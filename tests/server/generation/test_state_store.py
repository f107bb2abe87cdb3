"""Tests of the store of saved states: owners, memory and limits."""

import gc
import tracemalloc

import numpy as np
import pytest
from roost.engine import SavedState, Snapshot
from roost.server.errors.request_errors import ApiError
from roost.server.generation import state_store
from roost.server.generation.state_store import StateStore
from unpacked_states import saved_state

PLENTY = 2**30


def state(num_tokens: int = 1000) -> SavedState:
    return saved_state([5] * num_tokens)


def fill(store: StateStore, owner: str, limit: int, each: SavedState) -> int:
    """Returns how many states an owner can keep."""
    count = 0
    while True:
        try:
            store.keep(each, owner, limit)
        except ApiError as error:
            return count if error.status_code == 507 else -1
        count += 1


def test_token_ids_count_as_packed() -> None:
    """A tuple would take ten times as much."""
    assert fill(StateStore(), "", 1_000_000, state(10_000)) in (22, 23, 24)


def test_tiny_states_count() -> None:
    assert fill(StateStore(), "", 1_000_000, state(1)) < 1_000


def test_tenant_leaves_as_much_memory_as_it_takes() -> None:
    store, limit = StateStore(num_tenants=3), 1_000_000
    first = fill(store, "one", limit, state())
    assert store.num_bytes <= limit / 2
    second = fill(store, "two", limit, state())
    assert second >= first // 2 - 1 > 10
    assert fill(store, "three", limit, state()) > 10
    assert fill(StateStore(), "one", limit, state()) > 3 * first // 2, "one alone takes all"


def test_tenant_leaves_as_many_places_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_store, "MAX_STATES", 100)
    store = StateStore(num_tenants=2)
    assert fill(store, "one", PLENTY, state(1)) == 50
    assert fill(store, "two", PLENTY, state(1)) == 25
    assert fill(StateStore(), "one", PLENTY, state(1)) == 100


def test_deleting_frees_memory() -> None:
    store = StateStore()
    kept = [store.keep(state(), "one", PLENTY) for _ in range(3)]
    before = store.num_bytes
    store.delete(kept[1].id, "one")
    assert store.num_bytes == before - kept[1].num_bytes
    assert store.of("one") == [kept[0], kept[2]]
    with pytest.raises(ApiError):
        store.delete(kept[0].id, "two")
    assert store.of("two") == []


@pytest.mark.parametrize("num_blocks", [0, 2])
@pytest.mark.parametrize("num_tokens", [1, 10_000])
def test_num_bytes_is_the_memory_of_the_states(num_blocks: int, num_tokens: int) -> None:
    def make() -> SavedState:
        recurrent = np.zeros((4, 64), np.float32), np.zeros((4, 3, 64), np.float32)
        window = tuple(np.zeros((64, 2, 8), np.float32) for _ in range(num_blocks))
        return saved_state([5] * num_tokens, Snapshot(64, recurrent, window) if window else None)

    store = StateStore()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(100):
            store.keep(make(), "one", PLENTY)
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= 1.25 * store.num_bytes
    if num_tokens > 1:
        assert store.num_bytes <= 1.25 * taken
