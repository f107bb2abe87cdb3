"""Lists of test files name files that are there; groups go to one process, and markers to the runs they belong to."""

from pathlib import Path

import pytest
from suites import expression, unnamed_skips
from workers import APART, BITS, FIRST, FULL, GROUPS, OPTIMIZED, scope_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("group", GROUPS)
def test_files_of_a_group_have_one_scope(group: tuple[str, ...]) -> None:
    assert all((ROOT / path).exists() for path in group), group
    assert {scope_of(f"{path}::test_a[b::c]") for path in group} == {group[0]}


def test_another_file_has_its_own() -> None:
    assert scope_of("tests/test_files_that_share.py::test_a[b::c]") == "tests/test_files_that_share.py"


def test_the_file_that_comes_first_is_there() -> None:
    assert (ROOT / FIRST).exists()


@pytest.mark.parametrize("path", APART)
def test_tests_of_servers_of_their_own_have_each_a_scope(path: str) -> None:
    assert (ROOT / path).exists()
    assert scope_of(f"{path}::test_a[b]") != scope_of(f"{path}::test_a[c]")


@pytest.mark.parametrize("beginning", sorted({*BITS, *FULL, *OPTIMIZED}))
def test_a_listed_beginning_is_that_of_a_file(beginning: str) -> None:
    assert any(ROOT.glob(f"{beginning}*")), beginning


def test_the_default_tests_are_fewer_than_all() -> None:
    default, everything = (expression(run_all=run_all).split(" and ") for run_all in (False, True))
    assert {*default} - {*everything} == {"not full", "not mesh"}
    assert not {*everything} - {*default}


def test_a_skip_that_no_table_names_is_reported() -> None:
    known = "Skipped: the history is missing"
    assert unnamed_skips([known, "Skipped: PgBouncer is not installed"]) == ["Skipped: PgBouncer is not installed"]
