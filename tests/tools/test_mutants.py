"""The list of mutants fits the tree, an unnoticed one is told from the others, and seeded mutants are what they say."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import seeded_mutants
from mutants import MUTANTS, ROOT, Mutant, Tree, is_noticed

WRONG = Mutant("wrong", "code.py", "right", "wrong", ("tests",))


class Toy(Tree):
    """A tree of one file, whose tests fail if it has a certain word."""

    def __init__(self, root: Path, refused: str) -> None:
        self.root, self._refused = root, refused
        (root / "code.py").write_text("right")

    def passes(self, tests: Sequence[str]) -> bool:
        return self._refused not in (self.root / "code.py").read_text()


@pytest.mark.parametrize(("refused", "is_lost"), [("wrong", False), ("missing", True)])
def test_a_mutant_is_noticed_if_its_tests_fail(refused: str, is_lost: bool, tmp_path: Path) -> None:
    assert is_noticed(Toy(tmp_path, refused), WRONG) != is_lost
    assert (tmp_path / "code.py").read_text() == "right"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_fits_one_place_and_names_tests_that_exist(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


CODE = """def total(numbers, limit=3):
    count = len(numbers)
    if count <= limit and numbers:
        note(numbers, count)
        return count + 1, is_even(
            count,
        )
    return True if not count else 0
"""
CHANGES = {
    "1: constant: 3 -> (4)",
    "3: condition: count <= limit and numbers -> not (count <= limit and numbers)",
    "3: operator: count <= limit and numbers -> (count <= limit or numbers)",
    "3: comparison: count <= limit -> (count < limit)",
    "4: statement: note(numbers, count) -> pass",
    "4: arguments: note(numbers, count) -> (note(count, numbers))",
    "5: operator: count + 1 -> (count - 1)",
    "5: constant: 1 -> (2)",
    "8: condition: True if not count else 0 -> (True if not not count else 0)",
    "8: condition: not count -> (count)",
    "8: constant: True -> (False)",
    "8: constant: 0 -> (1)",
}


def test_each_seeded_mutant_is_one_change_that_compiles() -> None:
    found = {mutant.change: mutant for mutant in seeded_mutants.mutants("code.py", CODE)}
    assert found.keys() == CHANGES
    for mutant in found.values():
        compile(mutant.text, mutant.file, "exec")
        changed = [old for old, new in zip(CODE.splitlines(), mutant.text.splitlines(), strict=True) if old != new]
        assert len(changed) == 1
    assert found["5: constant: 1 -> (2)"].lines == range(5, 8)
    assert found["3: comparison: count <= limit -> (count < limit)"].lines == range(3, 4)


def test_the_seed_chooses_mutants_of_every_file_and_kind() -> None:
    candidates = [mutant for file in "abc" for mutant in seeded_mutants.mutants(f"{file}.py", CODE)]
    kinds = {(mutant.file, mutant.kind) for mutant in candidates}
    chosen = seeded_mutants.chosen(candidates, len(kinds), seed=0)
    assert {(mutant.file, mutant.kind) for mutant in chosen} == kinds
    assert seeded_mutants.chosen(candidates, len(kinds), seed=0) == chosen
    assert seeded_mutants.chosen(candidates, len(kinds), seed=1) != chosen
    assert len({*seeded_mutants.chosen(candidates, 1000, seed=0)}) == len(candidates)


@pytest.mark.parametrize(
    ("test", "mirrored"),
    [
        ("tests/server/http", "server/http"),
        ("tests/server/http/test_routes.py", "server/http/routes.py"),
        ("tests/server/http/test_fuzz.py", "server/http"),
    ],
)
def test_tests_mirror_their_subject(test: str, mirrored: str) -> None:
    assert seeded_mutants.subject(test) == mirrored


class ToyRun(seeded_mutants.Run):
    """Tests that fail if their tree's file has certain words, and reach its lines."""

    def __init__(self, root: Path, *refused: str) -> None:
        self.root, self._refused, self._tree, self._tests = root, refused, self, ["tests"]
        self._reached, self._seconds = {"code.py": {1: {""}, 3: {"tests/test_code.py"}, 4: {"tests/test_code.py"}}}, 1.0
        root.mkdir()
        (root / "code.py").write_text(CODE)

    def passes(self, tests: Sequence[str], seconds: float | None = None) -> bool:
        return not any(word in (self.root / "code.py").read_text() for word in self._refused)


@pytest.mark.parametrize(("still", "status"), [(("pass", "limit=(4)"), 0), (("pass",), 1)])
def test_a_mutant_that_tests_no_longer_kill_is_lost(
    still: tuple[str, ...], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = ToyRun(tmp_path / "before", "pass", "limit=(4)"), ToyRun(tmp_path / "now", *still)
    drawn = list(before.candidates(["code.py"], now.root))
    assert {mutant.change for mutant in drawn} == {change for change in CHANGES if change[0] in "134"}
    assert not list(before.candidates(["other"], now.root))
    assert seeded_mutants.report(before, now, drawn) == status
    lines = capsys.readouterr().out.splitlines()
    assert "code.py:4: statement: note(numbers, count) -> pass: killed" in lines
    assert ("code.py:1: constant: 3 -> (4): LOST: killed before" in lines) is bool(status)
    assert lines[-1] == f"6 mutants: {2 - status} killed, 4 lives, as before, {status} LOST: killed before"
    assert (now.root / "code.py").read_text() == CODE
    (now.root / "code.py").write_text("other")
    assert not list(before.candidates(["code.py"], now.root))
