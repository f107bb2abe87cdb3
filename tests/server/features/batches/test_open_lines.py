"""How many lines a replica claims, for all tenants and for each."""

from hypothesis import given
from hypothesis import strategies as st
from roost.server.features.batches.batch_table import LineClaim
from roost.server.features.batches.line_worker import MAX_LONGEST, OpenLines
from roost.server.storage.work import Claim, Lease

LONGEST = 1000


def opened(counts: dict[str, int], num_bytes: int = 1, *, is_shared: bool = True) -> OpenLines:
    """Returns so many lines of each tenant."""
    claims = [claim(tenant, number, num_bytes) for tenant, count in counts.items() for number in range(count)]
    return OpenLines(claims, LONGEST, is_shared=is_shared)


def claim(tenant: str, number: int, num_bytes: int) -> LineClaim:
    return LineClaim(Claim(Lease(tenant, "batch", number, 1)), b"x" * num_bytes, "model", is_expired=False)


def test_one_of_several_tenants_leaves_an_eighth() -> None:
    places = opened({"a": 50}).wanted(64)
    assert (places.num_free, places.of("a"), places.of("b")) == (14, 6, 56)
    assert opened({"a": 10}, is_shared=False).wanted(64).of("a") == 54


def test_a_tenant_without_lines_gets_its_share_beside_one_that_has_too_many() -> None:
    """They were claimed while other requests left more room."""
    lines = opened({"a": 44})
    places = lines.wanted(6)
    assert (places.num_free, places.of("a"), places.of("b")) == (3, 0, 3)
    assert opened({"a": 44}, is_shared=False).wanted(6).num_free == 0
    assert lines.wanted(0).num_free == 0, "others leave no slot"
    assert opened({"a": 44, "b": 2}).wanted(6).of("b") == 0


def test_a_tenant_whose_lines_are_long_leaves_memory_to_others() -> None:
    lines = opened({"a": 28}, LONGEST)
    places = lines.wanted(64)
    assert (places.num_free, places.of("a"), places.of("b")) == (4, 0, 56)
    assert opened({"a": 20}, LONGEST).wanted(64).of("a") == 8


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50)), st.integers(0, 64), st.integers(1, LONGEST))
def test_room_and_memory_have_bounds(counts: dict[str, int], room: int, num_bytes: int) -> None:
    """All tenants together never get more than twice the room."""
    claims = list[LineClaim]()
    for tenant, count in counts.items():
        for number in range(count):
            places = OpenLines(claims, LONGEST, is_shared=True).wanted(room)
            if places.num_free and places.of(tenant):
                claims.append(claim(tenant, number, num_bytes))
    lines = OpenLines(claims, LONGEST, is_shared=True)
    assert lines.held.total() <= 2 * room
    assert lines.num_bytes <= MAX_LONGEST * LONGEST
