"""The strings of patterns that have few."""

import re

import pytest
from roost.server.constraints.schema_strings import few

FEW = {
    "^a$": ["a"],
    "^$": [""],
    "^[a-c]$": ["a", "b", "c"],
    "^(left|right)$": ["left", "right"],
    "^name:(?:en|nl|)$": ["name:en", "name:nl", "name:"],
    "^x[0-2]{2}$": ["x00", "x01", "x02", "x10", "x11", "x12", "x20", "x21", "x22"],
    "^a{1,3}$": ["a", "aa", "aaa"],
    "^colou?r$": ["color", "colour"],
    "^(a|b(c|d)?)?e$": ["e", "ae", "be", "bce", "bde"],
    r"^\$a\.[.$]$": ["$a..", "$a.$"],
    "^(a|a|[a-b])$": ["a", "b"],
}


@pytest.mark.parametrize(("pattern", "strings"), FEW.items())
def test_strings_of_a_pattern(pattern: str, strings: list[str]) -> None:
    assert few(pattern) == strings
    assert all(re.search(pattern, string) for string in strings)


MANY = [
    *("a", "^a", "a$", "^a|b$", "^a*$", "^a+$", "^a.$", "^[^a]$", r"^\d$", r"^\w$", "^a{2,}$", "^(?i:a)$", "^(?=a)a$"),
    *(
        "^a??$",
        "^(a$",
        "^a)$",
        "^[z-a]$",
        "^[]$",
        "^a\\$",
        "^[a-z]{2}$",
        f"^{'a' * 200}$",
        "^(a{64}){64}$",
        "^(){999}$",
    ),
]


@pytest.mark.parametrize("pattern", MANY)
def test_many_strings_are_not_listed(pattern: str) -> None:
    assert few(pattern) is None
