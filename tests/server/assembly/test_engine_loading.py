"""Progress that is shown while an engine loads."""

from pathlib import Path

import pytest
from roost.server.assembly.service import LoadProgress


def test_without_a_terminal_a_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = LoadProgress()
    for done in range(1, 4):
        progress("weights", done, 3)
    progress("compile", 1, 1)
    progress.close()
    progress.close()
    assert capsys.readouterr().err == "loading weights: 3 of 3\ncompiling: 1 of 1\n"


@pytest.mark.parametrize("is_cached", [False, True])
def test_the_first_compile_says_that_later_starts_are_quicker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_cached: bool
) -> None:
    if is_cached:
        (tmp_path / "jit_step-1-cache").touch()
    progress = LoadProgress(tmp_path)
    for done in range(1, 4):
        progress("compile", done, 3)
    progress.close()
    line = f"compiling for the first time; the programs are kept in {tmp_path}, so later starts are quicker\n"
    assert capsys.readouterr().err == ("" if is_cached else line) + "compiling: 3 of 3\n"
