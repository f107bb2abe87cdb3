"""Each promise of README, SECURITY and the pages of docs/explanation has a test that the default suite runs.

`promises.md` lists them.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest
from suites import SUITES, Runs
from workers import FULL

ROOT = Path(__file__).resolve().parents[1]

LEFT_OUT: Final = {marker for marker, suite in SUITES.items() if suite.runs != Runs.DEFAULT}
"""Markers of tests that do not run by default."""


def listed() -> dict[str, list[tuple[str, str]]]:
    """Returns the quotations of each document, with the ids of the tests that hold them."""
    _, *sections = Path(__file__).with_name("promises.md").read_text().split("\n## ")
    return {
        section.partition("\n")[0]: re.findall(r"^\| (.+) \| (tests/.+::\w+) \|$", section, re.MULTILINE)
        for section in sections
    }


PROMISES: Final = listed()


def plain(markdown: str) -> str:
    """Returns a page's text on one line, without bold type and addresses of links; a colon parts cells of tables."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown).replace("**", "").replace(" | ", ": ")
    return " ".join(text.split())


def problem(source: str, names: Iterable[str]) -> str | None:
    """Returns why a file's test does not run by default, if it does not.

    Args:
      source: The file's text.
      names: Names of the classes that the test lies in, and its own.
    """
    body = ast.parse(source).body
    marked = list[ast.AST]()
    marked += (node for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark")
    for name in names:
        tests = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        found = next((node for node in tests if node.name == name), None)
        if found is None:
            return f"there is no {name}"
        marked += found.decorator_list
        body = found.body
    markers = LEFT_OUT & {node.attr for each in marked for node in ast.walk(each) if isinstance(node, ast.Attribute)}
    return f"it is marked {', '.join(sorted(markers))}" if markers else None


def test_each_document_makes_promises() -> None:
    explanation = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "explanation").rglob("*.md")}
    assert PROMISES.keys() == {"README.md", "SECURITY.md"} | explanation
    assert all(PROMISES.values())
    rows = Path(__file__).with_name("promises.md").read_text().count("\n| ") - 2 * len(PROMISES)
    assert rows == sum(map(len, PROMISES.values())), "a row names no test"


@pytest.mark.parametrize("document", PROMISES)
def test_promises_stand_in_their_documents(document: str) -> None:
    text = plain((ROOT / document).read_text())
    assert [quotation for quotation, _ in PROMISES[document] if quotation not in text] == []


@pytest.mark.parametrize("document", PROMISES)
def test_promises_are_held_by_default(document: str) -> None:
    found = []
    for _, test in PROMISES[document]:
        path, *names = test.split("::")
        reason = "its file is in FULL" if test.startswith(FULL) else problem((ROOT / path).read_text(), names)
        if reason:
            found.append(f"{test}: {reason}")
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def test_b(): ...", "there is no TestA"),
        ("class TestA:\n def test_c(self): ...", "there is no test_b"),
        ("class TestA:\n @pytest.mark.slow\n def test_b(self): ...", "it is marked slow"),
        ("@mark.mesh\nclass TestA:\n async def test_b(self): ...", "it is marked mesh"),
        ("pytestmark = [mark.timeout(9), mark.full]\nclass TestA:\n def test_b(self): ...", "it is marked full"),
        ("pytestmark = mark.bits\nclass TestA:\n @mark.timeout(9)\n def test_b(self): ...", None),
    ],
)
def test_a_test_that_is_missing_or_left_out_is_seen(source: str, reason: str | None) -> None:
    assert problem(source, ["TestA", "test_b"]) == reason
