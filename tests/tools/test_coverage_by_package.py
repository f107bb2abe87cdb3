"""The table of covered lines and branches: packages are two folders deep, and the last row has all of them."""

from typing import Any

from coverage_by_package import lines, packages


def facts(*counts: int) -> dict[str, Any]:
    names = ("covered_lines", "num_statements", "covered_branches", "num_branches")
    return {"summary": dict(zip(names, counts, strict=True))}


def test_files_of_a_package_are_added_up() -> None:
    files = {
        "server/http/routes.py": facts(3, 4, 1, 2),
        "server/http/parts/one.py": facts(1, 4, 0, 0),
        "server/app.py": facts(5, 5, 0, 0),
    }
    assert packages(files) == {"server": [5, 5, 0, 0], "server/http": [4, 8, 1, 2]}


def test_a_package_without_branches_has_no_share_of_them() -> None:
    rows = [line.split() for line in lines({"server": [5, 5, 0, 0], "server/http": [4, 8, 1, 2]})]
    assert rows[1:] == [
        ["server", "100.0%", "–"],
        ["server/http", "50.0%", "50.0%"],
        ["all", "69.2%", "50.0%"],
    ]
