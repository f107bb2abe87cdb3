"""The list of mutants fits the tree, and each outcome is told from the others."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from mutants import MUTANTS, NOTICED, ROOT, Mutant, Tree, outcome

WRONG = Mutant("wrong", "code.py", "right", "wrong", ("tests",))


class Toy(Tree):
    """A tree of one file, whose tests fail if it has a certain word."""

    def __init__(self, root: Path, refused: str) -> None:
        self.root, self._refused = root, refused
        (root / "code.py").write_text("right")

    def passes(self, tests: Sequence[str]) -> bool:
        return self._refused not in (self.root / "code.py").read_text()


@pytest.mark.parametrize(
    ("refused", "found"), [("wrong", NOTICED), ("missing", "NOT NOTICED"), ("right", "its tests fail without it")]
)
def test_a_mutant_is_noticed_if_only_its_tests_fail(refused: str, found: str, tmp_path: Path) -> None:
    assert outcome(Toy(tmp_path, refused), WRONG) == found
    assert (tmp_path / "code.py").read_text() == "right"


def test_a_mutant_that_fits_no_place_is_not_noticed(tmp_path: Path) -> None:
    found = outcome(Toy(tmp_path, "wrong"), WRONG._replace(old="left"))
    assert found == "code.py has 'left' 0 times instead of once"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_mutant_fits_one_place_and_names_tests_that_exist(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()
