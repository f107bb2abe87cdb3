"""Two minutes of `tests/robust/soak.py`, which runs for twenty: mixed load without any lost request."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.robust
@pytest.mark.timeout(600)
def test_two_minutes_of_mixed_load() -> None:
    done = subprocess.run([sys.executable, str(SOAK), "--minutes", "2", "--json"], capture_output=True, text=True)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert not result["problems"], "\n".join(result["problems"])
    assert done.returncode == 0
    assert all(result["by_kind"].get(kind) for kind in ("whole", "streamed", "left", "cancelled", "aborted", "wrong"))
