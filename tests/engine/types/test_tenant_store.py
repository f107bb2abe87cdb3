"""Tests of the tenant store against a model that counts all entries again."""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import given
from roost.engine import TenantStore


@dataclass
class Item:
    """An entry of the model."""

    key: int
    tenant: str
    num_bytes: int


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 9), st.sampled_from("abc"), st.integers(0, 20)),
        st.tuples(st.just("resize"), st.integers(0, 9), st.just(""), st.integers(0, 20)),
        st.tuples(st.just("pop"), st.integers(0, 9), st.just(""), st.just(0)),
    ),
    max_size=40,
)


def evict(items: list[Item], max_entries: int, max_bytes: int) -> list[int]:
    """Returns what the model evicts."""
    evicted = []
    while len(items) > max_entries or sum(item.num_bytes for item in items) > max_bytes:
        weight = (lambda item: 1) if len(items) > max_entries else (lambda item: item.num_bytes)
        totals: dict[str, int] = {}
        for item in items:
            totals[item.tenant] = totals.get(item.tenant, 0) + weight(item)
        largest = {tenant for tenant, total in totals.items() if total == max(totals.values())}
        oldest = next(item for item in items if item.tenant in largest)
        if len(largest) > 1:
            return evicted  # either may give way: the model makes no statement
        items.remove(oldest)
        evicted.append(oldest.key)
    return evicted


@given(operations=OPERATIONS, max_entries=st.integers(0, 10), max_bytes=st.integers(0, 60))
def test_counts_and_order_are_those_of_the_entries(
    operations: list[tuple[str, int, str, int]], max_entries: int, max_bytes: int
) -> None:
    store, items = TenantStore[int, int](max_entries, max_bytes), list[Item]()
    for name, key, tenant, num_bytes in operations:
        present = next((item for item in items if item.key == key), None)
        evicted = list[int]()
        if name == "put":
            evicted = store.put(key, tenant, key, num_bytes)
            items = [item for item in items if item.key != key] + [Item(key, tenant, num_bytes)]
        elif name == "resize" and present is not None:
            evicted = store.resize(key, num_bytes)
            present.num_bytes = num_bytes
        elif name == "pop":
            assert store.pop(key) == (None if present is None else key)
            items = [item for item in items if item.key != key]
        expected = evict(list(items), max_entries, max_bytes)
        assert evicted[: len(expected)] == expected
        items = [item for item in items if item.key not in evicted]
        assert len(store) <= max_entries
        assert store.num_bytes <= max_bytes
        assert store.num_bytes == sum(item.num_bytes for item in items)
        assert len(store) == len(items)
        for each in "abc":
            mine = [item for item in items if item.tenant == each]
            assert list(store.of(each)) == [item.key for item in mine]
            assert store.bytes_of(each) == sum(item.num_bytes for item in mine)
            assert store.count_of(each) == len(mine)
        assert all(store.get(item.key) == item.key for item in items)


def test_no_tenant_may_hold_more_than_it_leaves_free() -> None:
    store = TenantStore[str, None]()
    store.put("a", "one", None, 40)
    for is_shared, most in ((False, 60), (True, 20)):
        assert store.has_room("one", most, 100, is_shared=is_shared)
        assert not store.has_room("one", most + 1, 100, is_shared=is_shared)
        assert store.has_room("two", 60, 100, is_shared=is_shared)
        assert not store.has_room("two", 61, 100, is_shared=is_shared)


def test_largest_tenant() -> None:
    store = TenantStore[str, None]()
    store.put("a", "one", None, 3)
    store.put("b", "two", None, 2)
    assert store.largest() == "one"
    store.put("c", "two", None, 2)
    assert store.largest() == "two"
