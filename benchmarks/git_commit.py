"""The commit of the measured tree."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Returns the commit that is checked out; empty outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
