"""Prints the share of each package's lines and branches that tests have reached; `python3 dev.py coverage` runs it.

python tools/coverage_by_package.py REPORT.json
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

COUNTS: Final = ("covered_lines", "num_statements", "covered_branches", "num_branches")


def packages(files: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns the sums of `COUNTS` over the files of each package, which is named by two folders."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for path, facts in files.items():
        package = "/".join(PurePath(path).parts[:-1][:2])
        sums[package] = [total + facts["summary"][count] for total, count in zip(sums[package], COUNTS, strict=True)]
    return dict(sorted(sums.items()))


def lines(sums: Mapping[str, list[int]]) -> Iterable[str]:
    """Yields the rows of a table, the last of which has all packages."""
    everything = [sum(column) for column in zip(*sums.values(), strict=True)]
    yield f"{'':32}   lines  branches"
    for name, counts in {**sums, "all": everything}.items():
        yield f"{name:32}{percent(*counts[:2])}  {percent(*counts[2:])}"


def percent(covered: int, total: int) -> str:
    return f"{100 * covered / total:7.1f}%" if total else "       –"


if __name__ == "__main__":
    print("\n".join(lines(packages(json.loads(Path(sys.argv[1]).read_text())["files"]))))
