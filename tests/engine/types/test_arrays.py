"""Token ids in 4 bytes each."""

from hypothesis import given
from hypothesis import strategies as st
from roost.engine import ID_BYTES, Request, id_bytes, ids_in, pack_ids

IDS = st.lists(st.integers(0, 2**31 - 1))


@given(st.lists(IDS, min_size=1, max_size=4))
def test_parts_are_packed_in_a_row(parts: list[list[int]]) -> None:
    packed, whole = pack_ids(*parts), [token_id for part in parts for token_id in part]
    assert list(packed) == whole
    assert pack_ids(*map(pack_ids, parts)) == packed
    assert len(id_bytes(packed)) == ID_BYTES * len(whole)
    assert list(ids_in(id_bytes(packed))) == whole


@given(IDS, st.integers(0, 20), st.integers(0, 20))
def test_a_slice_is_as_of_a_list(ids: list[int], start: int, end: int) -> None:
    cut = pack_ids(ids)[start:end]
    assert list(cut) == ids[start:end]
    assert list(ids_in(id_bytes(cut))) == ids[start:end]


def test_a_request_shares_its_ids() -> None:
    """With the caller, and with the key of the prefix cache."""
    ids = pack_ids(range(1000))
    request = Request("a", ids)
    assert request.prompt_token_ids is ids
    assert id_bytes(ids) is id_bytes(request.prompt_token_ids)
