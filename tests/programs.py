"""Programs that tests need. Tests without their program are skipped, or fail if DEMAND_TOOLS=1."""

import os
import shutil
import sys

import pytest


def missing(what: str, how: str) -> None:
    """Skips or fails the test."""
    reason = f"{what} is missing: {how}"
    if os.environ.get("DEMAND_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Returns a program's path, even if only root's PATH contains it, or the environment of these tests."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin:{sys.prefix}/bin")
    if found is None:
        missing(name, f"on Debian, apt-get install {package}")
    return str(found)
