"""Pages and pictures that are written from the code agree with it, and every page is in the navigation."""

import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT / "tools"))
try:
    import draw_pictures
finally:
    sys.path.remove(str(ROOT / "tools"))


def test_reference_pages_are_those_of_the_code(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-P", ROOT / "tools" / "reference_pages.py", "--folder", tmp_path], check=True)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written.keys() == {"settings.md", "endpoints.md", "errors.md", "metrics.md"}
    for name, text in written.items():
        assert (ROOT / "docs" / "reference" / name).read_text() == text, (
            "write it anew: python tools/reference_pages.py"
        )


def test_each_field_has_a_meaning() -> None:
    rows = (ROOT / "docs" / "reference" / "endpoints.md").read_text().splitlines()
    assert [row for row in rows if row.startswith("| `") and row.endswith("|  |")] == []


@pytest.mark.parametrize(("name", "draw"), draw_pictures.PICTURES.items())
def test_pictures_are_those_of_the_code(name: str, draw: Callable[[], str]) -> None:
    drawn = (draw_pictures.FOLDER / name).read_text()
    assert drawn == draw(), "draw it anew: python tools/draw_pictures.py"


def test_a_circle_of_rooms_is_reported() -> None:
    with pytest.raises(ValueError, match=r"a circle among \['a', 'b'\]"):
        draw_pictures.levels({"a": {"b"}, "b": {"a"}, "c": {"a"}})


def test_an_arrow_that_a_longer_way_replaces_is_not_drawn() -> None:
    edges = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert draw_pictures.without_detours(edges) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert draw_pictures.levels(edges) == [["a"], ["b"], ["c"]]


def linked(entry: Any) -> Iterator[str]:
    """Yields the pages that a part of the navigation names."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for each in entry.values():
            yield from linked(each)
    else:
        for each in entry:
            yield from linked(each)


def test_every_page_is_in_the_navigation() -> None:
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    pages = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    assert sorted(linked(navigation)) == pages
