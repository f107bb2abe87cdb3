"""Programs that tests need. Without one, its tests are skipped; where DEMAND_TOOLS=1 says so, they fail."""

import os
import shutil

import pytest


def missing(what: str, how: str) -> None:
    """Ends the test."""
    reason = f"{what} is missing: {how}"
    if os.environ.get("DEMAND_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Returns a program's path, also where only root's PATH has it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        missing(name, f"on Debian, apt-get install {package}")
    return str(found)
