"""Twenty thousand bad requests of `tests/robust/fuzz.py`, which sends hundreds of thousands, to a server process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.robust
@pytest.mark.timeout(900)
def test_twenty_thousand_bad_requests() -> None:
    command = [sys.executable, str(FUZZ), "--requests", "20000", "--seed", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert not result["problems"], "\n".join(result["problems"])
    assert result["requests"] == 20000
