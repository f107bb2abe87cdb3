"""The table of sizes holds: nothing grows without an edit of `code_sizes.py`."""

import code_sizes
import pytest


def test_rooms_and_files_have_no_more_code_than_the_table_says() -> None:
    found = code_sizes.sizes_of_rooms()
    assert not (grown := code_sizes.growth(found)), f"grown, see tests/code_sizes.py: {'; '.join(grown)}"
    assert found.keys() < code_sizes.MOST.keys()


def test_growth_names_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sizes, "MOST", {"files of a": 2, "files of b": 2})
    assert code_sizes.growth({"files of a": 3, "files of b": 2}) == ["files of a: 3, and at most 2"]


def test_code_lines_are_those_without_docstrings_comments_and_blank_lines() -> None:
    text = '"""Doc\n\nof two lines."""\n\n# comment\nx = [\n    1,  # comment\n]\n"""Doc of x."""\n\ny = """a\nb"""\n'
    assert code_sizes.code_lines(text) == 5
