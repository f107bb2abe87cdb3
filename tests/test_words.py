"""Tests that docstrings begin with their subject, and that names which were replaced don't come back."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("server", "engine", "kernels")

BAD_START = re.compile(r"\s*(Of|As|In|Where|What|Who|Whoever|So many|So long)\b")
"""First words of a docstring that has no subject."""

OLD_WORDS = {
    "adjust": "logits processors",
    "adjusted": "processed",
    "asking": "requested",
    "begun": "pending",
    "cut": "partition spec",
    "cutting": "sharding rules",
    "door": "open requests, or entry point",
    "doorkeeper": "drain",
    "failing": "failure",
    "framing": "SSE encoder",
    "halving": "tree reduction",
    "leaving": "draining",
    "life": "lifecycle",
    "likeliest": "argmax",
    "observing": "observability",
    "pace": "retry-after estimator",
    "patience": "timeout",
    "tell": "report",
    "told": "reported",
    "trail": "state",
    "trails": "states",
    "untold": "pending",
    "wish": "output constraint",
}
"""Words that no name contains, and the standard term for each."""

OLD_TYPE_WORDS = {
    "answer": "response",
    "answers": "responses",
    "question": "request",
    "questions": "requests",
    "terms": "scheduling parameters",
}
"""Words that no module or class is named after, and the standard term for each."""

WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and text of every docstring, and of every string that follows an assignment."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for before, statement in pairwise((None, *node.body)):
            if isinstance(before, ast.Assign | ast.AnnAssign | None) and (text := string_of(statement)) is not None:
                yield statement.lineno, text


def string_of(statement: ast.stmt) -> str | None:
    """Returns the text of a statement that is nothing but a string."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value if isinstance(value, str) else None
    return None


def types(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and name of the file's folder and module and of every class in it."""
    *_, folder, module = ["", *Path(path).with_suffix("").parts]
    yield from ((1, folder), (1, module))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.lineno, node.name


def functions(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and name of every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name


def words(name: str) -> set[str]:
    """Returns the words of a name: {"request", "id"} for request_id and RequestId."""
    return {word.lower() for word in WORD.findall(name)}


def violations(path: str, text: str) -> list[str]:
    """Returns one line for every docstring and name of a file that breaks a rule."""
    tree = ast.parse(text, path)
    names = [(line, name, OLD_WORDS | OLD_TYPE_WORDS) for line, name in types(path, tree)]
    names += [(line, name, OLD_WORDS) for line, name in functions(tree)]
    return [
        *(f"{path}:{line} begins without a subject: {start}" for line, start in subjectless(tree)),
        *(
            f"{path}:{line} has an old name, {name}: say {old[word]}"
            for line, name, old in names
            for word in words(name) & old.keys()
        ),
    ]


def subjectless(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the line and first words of every docstring that begins without a subject."""
    for line, text in docstrings(tree):
        if BAD_START.match(text):
            yield line, text.strip()[:60]


def all_violations() -> list[str]:
    """Returns the violations of all rooms."""
    paths = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return [line for path in paths for line in violations(path.relative_to(ROOT).as_posix(), path.read_text())]


def test_docstrings_have_a_subject_and_names_are_current() -> None:
    found = all_violations()
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("engine/x.py", '"""Of the prompts of those without a slot."""'),
        ("engine/x.py", 'SIZE = 4\n"""What a page holds."""'),
        ("engine/x.py", 'class Slots:\n    """Slots."""\n\n    free: int\n    """In use by nobody."""'),
        ("engine/x.py", 'def f():\n    """\n    Whoever waits."""'),
        ("engine/x.py", 'async def f():\n    """So many tokens."""'),
        ("server/life.py", ""),
        ("server/life/x.py", ""),
        ("server/terms.py", ""),
        ("server/x.py", "class Door: ..."),
        ("server/x.py", "class AnswerWriter: ..."),
        ("server/x.py", "class A:\n    def _tell_status(self): ..."),
        ("engine/x.py", "def is_begun(): ..."),
    ],
)
def test_violation_is_reported(path: str, text: str) -> None:
    assert len(violations(path, text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        '"""Assigns slots to requests."""',
        '"""Inputs of a step."""\n\nSIZE = 4\n"""Number of rows."""\n',
        'def f():\n    """Returns the plan."""\n    "".join("What a page holds.")',
        "class Lifecycle: ...",
        "def answer(question): ...",
        "def cutoff(): ...",
    ],
)
def test_plain_text_passes(text: str) -> None:
    assert violations("server/x.py", text) == []
