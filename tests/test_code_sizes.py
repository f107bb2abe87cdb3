"""The table of sizes holds: nothing grows without an edit of `code_sizes.py`."""

import code_sizes
import pytest


@pytest.mark.skipif(not code_sizes.is_counted_here(), reason="only Python 3.13 counts nodes as code_sizes.py does")
def test_rooms_have_no_more_to_read_than_the_table_says() -> None:
    sizes = code_sizes.sizes_of_rooms()
    assert not (grown := code_sizes.growth(sizes)), f"grown, see tests/code_sizes.py: {'; '.join(grown)}"
    assert sizes.keys() < code_sizes.MOST.keys()


def test_growth_names_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sizes, "MOST", {"nodes of a": 2000, "nodes of b": 2000})
    assert code_sizes.growth({"nodes of a": 3000, "nodes of b": 2000}) == ["nodes of a: 3,000, and at most 2,000"]


def test_a_statement_counts_without_its_docstring_its_lines_and_the_statements_inside_it() -> None:
    text = 'def f(x: int) -> int:\n    """Doc."""\n    if x:\n        return x\n    return (\n        1\n    )\n'
    room = code_sizes.RoomSize(text)
    assert (
        room.nodes_a_statement == 2.7
    )  # an If with a Name and its Load, a Return with the same, and one with a Constant
    assert room.nodes == code_sizes.RoomSize(text.replace("(\n        1\n    )", "1")).nodes


def test_a_function_with_more_than_15_decisions_is_branchy() -> None:
    conditions = [f"    if x == {number} and y:\n        return x\n" for number in range(7)]
    assert code_sizes.RoomSize("def f(x, y):\n" + "".join(conditions)).branchy_functions == 0
    assert code_sizes.RoomSize("def f(x, y):\n" + "".join([*conditions, conditions[0]])).branchy_functions == 1
