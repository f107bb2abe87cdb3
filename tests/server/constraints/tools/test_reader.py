"""Text and calls are separated, however the output is split into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.server.constraints.tool_calls import CallPiece, CallReader, call_text, join_calls
from sweeps import examples

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["}\n</tool_call>", '"}]\\', "<tool_call>\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab}", max_size=3), inner, max_size=3),
    max_leaves=5,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["f", "get_weather"]), st.dictionaries(st.text('ab"', max_size=3), VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)


def read(text: str, size: int) -> tuple[str, tuple[CallPiece, ...], bool]:
    """Piece by piece of a size; all pieces as one."""
    reader = CallReader()
    shown, pieces = "", []
    for start in range(0, len(text) or 1, size):
        news, calls = reader.read(text[start : start + size], is_last=start + size >= len(text))
        shown += news
        pieces += calls
    return shown, join_calls(pieces), reader.is_complete


def written(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(call_text(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls)


@examples(20, sweep=500)
@given(calls=CALLS, size=st.integers(1, 60))
def test_calls_are_read_back(calls: list[tuple[str, dict[str, Any]]], size: int) -> None:
    shown, found, complete = read(written(calls), size)
    assert (shown, complete) == ("", True)
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert [call.index for call in found] == list(range(len(calls)))
    assert len({call.id for call in found}) == len(calls)


@examples(20, sweep=500)
@given(calls=CALLS, size=st.integers(1, 20), cut=st.integers(1))
def test_a_call_that_is_cut_short_is_incomplete(calls: list[tuple[str, dict[str, Any]]], size: int, cut: int) -> None:
    text = written(calls)
    kept = text[: cut % (len(text) - 1) + 1]
    shown, found, complete = read(kept, size)
    assert complete is (kept in [written(calls[: number + 1]) for number in range(len(calls))])
    assert kept.startswith(shown)  # what has not become the mark is text
    for call, (name, arguments) in zip(found, calls, strict=False):
        assert call.name == name
        assert json.dumps(arguments, ensure_ascii=False).startswith(call.arguments)


@given(
    text=st.text("<tol_ca>\n{x", max_size=30).filter(lambda text: not text.startswith("<tool_call>")),
    size=st.integers(1, 9),
)
def test_any_other_text_is_text(text: str, size: int) -> None:
    assert read(text, size) == (text, (), False)


@pytest.mark.parametrize("text", ["", "<", "<tool_call", "a <tool_call>\n{"])
def test_what_may_become_a_call_is_held_until_it_cannot(text: str) -> None:
    assert read(text, 1) == (text, (), False)


def test_the_name_comes_before_the_arguments() -> None:
    reader = CallReader()
    assert reader.read('<tool_call>\n{"name": "f', is_last=False) == ("", ())
    _, (piece,) = reader.read('", "arguments": ', is_last=False)
    assert (piece.name, piece.arguments) == ("f", "")
    assert reader.read('{"a": ', is_last=False) == ("", (CallPiece(0, arguments='{"a": '),))
    assert reader.read("1}}\n</tool", is_last=False) == ("", (CallPiece(0, arguments="1}"),))
    assert not reader.is_complete
    assert reader.read("_call>", is_last=True) == ("", ())
    assert reader.is_complete
