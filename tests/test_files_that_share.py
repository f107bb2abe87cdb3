"""Test files that share programs or a server are there, and go to one process."""

from pathlib import Path

import pytest
from workers import APART, FIRST, GROUPS, scope_of

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
