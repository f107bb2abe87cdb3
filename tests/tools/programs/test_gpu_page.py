"""Tables of compiled programs are printed, and put in the place of those of a page."""

from dataclasses import asdict

import orjson
import pytest
from gpu_dump import KernelResources
from gpu_estimate import Part
from gpu_programs import Row, as_markdown, parse_row, with_tables

KNOWN = KernelResources("rg_lru", 18, 256, 1024, 113, 0, 2)
UNKNOWN = KernelResources("recurrent_step", 18, 256, 13_952, None, None, None, 39_706)
PARTS = (Part("products", 105, 0.0020, 0.0019, 0.0006, 0.0002), Part("others", 233, 0.0012, 0.0003, 0.0, 0.0011))
ROW = Row(
    "2b", "h100", 3728, "int8", "int8", "decode-128", 128, 64, 64, 338, 338, 0, 0, 0, 106, 10**9, 7 * 10**10, True,
    0.002, 0.001, 0.0007, (KNOWN, UNKNOWN), PARTS,
)  # fmt: skip


def test_rows_are_read_as_they_were_printed() -> None:
    assert parse_row(orjson.dumps(asdict(ROW))) == ROW


def test_tables_replace_those_of_a_page() -> None:
    programs, parts, kernels = (f"{part.rstrip()}\n" for part in as_markdown([ROW]).split("\n\n"))
    assert "| 2.00 ms | 1.00 ms | 0.70 ms | 3.20 ms | 20,000 | 32,000 |" in programs, "the sum of the parts counts"
    assert "| decode-128 | 64 | others | 233 | 0.30 ms | 0.00 ms | 1.10 ms | 1.20 ms |" in parts
    assert "| 2b, int8, windows in int8 | h100 | 3,728 | decode-128 | 64 | 338 |" in programs
    assert "| rg_lru | 18 | 256 | 113 | 0 | 1,024 | 2 | unknown |" in kernels
    assert "| recurrent_step | 18 | 256 | unknown | unknown | 13,952 | unknown | 39,706 |" in kernels
    new = (programs, parts, kernels)
    old = [f"{''.join(part.splitlines(keepends=True)[:2])}| old |\n" for part in new]
    page = "# Title\n\n{}\n- Text.\n\n| other |\n| --- |\n\n{}\n{}\nEnd.\n"
    assert with_tables(page.format(*old), [ROW]) == page.format(*new)


def test_a_page_without_the_tables_is_refused() -> None:
    with pytest.raises(SystemExit, match="no table with the columns"):
        with_tables("# Title\n", [ROW])
