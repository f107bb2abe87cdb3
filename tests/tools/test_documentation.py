"""Pages and pictures that are written from the code agree with it, and every page is in the navigation."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import CycleError
from pathlib import Path
from typing import Any

import draw_pictures
import pytest
import reference_pages
import roost
from roost.server.commands.main import app
from typer.main import get_command

ROOT = Path(__file__).parents[2]


def test_reference_pages_are_those_of_the_code(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-P", ROOT / "tools" / "reference_pages.py", "--folder", tmp_path], check=True)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    names = {"settings", "metrics", "other-servers", "commands", "python"}
    names |= {"endpoints", *(f"endpoints-{api}" for api in ("chat", "responses", "batches", "messages", "native"))}
    assert written.keys() == {f"{name}.md" for name in names}
    for name, text in written.items():
        assert (ROOT / "docs" / "reference" / name).read_text() == text, (
            "write it anew: python tools/reference_pages.py"
        )


@pytest.mark.parametrize("pages", ["endpoints*.md", "commands.md", "python.md"])
def test_each_field_has_a_meaning(pages: str) -> None:
    rows = [row for page in (ROOT / "docs" / "reference").glob(pages) for row in page.read_text().splitlines()]
    assert len(rows) > 100
    assert [row for row in rows if row.startswith("| ") and row.endswith(("|  |", "| – |"))] == []


def test_every_public_name_has_a_section() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text()
    sections = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    assert sections - {"LLMTokenizer", "ChatOptions"} == {*roost.__all__} - {"__version__"}


def test_every_option_of_the_parser_is_listed() -> None:
    pages = [(ROOT / "docs" / "reference" / name).read_text() for name in ("commands.md", "settings.md")]
    for path, command in reference_pages.commands(get_command(app), "roost"):
        section = pages[0].partition(f"## {path}\n")[2].partition("\n## ")[0]
        listed = section + (pages[1] if path == "roost serve" else "")
        options = [name for param in command.params if param.param_type_name == "option" for name in param.opts]
        assert [name for name in options if f">{name}" not in listed and f"`{name}" not in listed] == [], path


@pytest.mark.parametrize(("name", "draw"), draw_pictures.PICTURES.items())
def test_pictures_are_those_of_the_code(name: str, draw: Callable[[], str]) -> None:
    drawn = (draw_pictures.FOLDER / name).read_text()
    assert drawn == draw(), "draw it anew: python tools/draw_pictures.py"


def test_a_circle_of_rooms_is_reported() -> None:
    with pytest.raises(CycleError):
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
