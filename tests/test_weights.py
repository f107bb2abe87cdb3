"""The table of weights holds: nothing grows without an edit of `weights.py`."""

import pytest
import weights


def test_rooms_and_files_have_no_more_code_than_the_table_says() -> None:
    found = weights.weights_of_rooms()
    assert not (grown := weights.growth(found)), f"grown, see tests/weights.py: {'; '.join(grown)}"
    assert found.keys() < weights.MOST.keys()


def test_growth_names_what_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MOST", {"files of a": 2, "files of b": 2})
    assert weights.growth({"files of a": 3, "files of b": 2}) == ["files of a: 3, and at most 2"]


def test_code_lines_are_those_without_docstrings_comments_and_blank_lines() -> None:
    text = '"""Doc\n\nof two lines."""\n\n# comment\nx = [\n    1,  # comment\n]\n"""Doc of x."""\n\ny = """a\nb"""\n'
    assert weights.code_lines(text) == 5
