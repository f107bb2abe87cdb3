"""Progress that is shown while an engine loads."""

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
