"""Arrays and objects of JSON, counted before it is parsed."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.server.schemas import json_limits
from roost.server.schemas.json_limits import MAX_CONTAINERS, has_too_many_containers

STRINGS = st.text(st.sampled_from('a"\\[]{}\n'))
VALUES = st.recursive(
    STRINGS | st.integers(0, 9) | st.none(), lambda each: st.lists(each) | st.dictionaries(STRINGS, each), max_leaves=30
)


def num_containers(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    return 1 + sum(map(num_containers, value.values() if isinstance(value, dict) else value))


@given(VALUES, st.booleans())
def test_brackets_are_counted_outside_of_strings(value: Any, is_indented: bool) -> None:
    raw = orjson.dumps(value, option=orjson.OPT_INDENT_2 if is_indented else None)
    assert len(json_limits._outside_strings(raw)) == num_containers(value)
    assert len(json_limits._outside_strings(bytearray(raw))) == num_containers(value)


@pytest.mark.parametrize("item", [b"[]", b'{"a":"]"}'])
def test_the_maximum_is_a_valid_number(item: bytes) -> None:
    largest = b"[" + b",".join([item] * (MAX_CONTAINERS - 1)) + b',"[{\\"[{"]'
    assert not has_too_many_containers(largest)
    assert has_too_many_containers(b"[" + largest + b"]")
