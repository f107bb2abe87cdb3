"""Programs that checks need. Without one, its tests are skipped; where DEMAND_TOOLS=1 says so, they fail."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from kubernetes_objects import DEPLOY


def load(name: str, folder: Path = DEPLOY) -> ModuleType:
    """A script of deploy/, or of another folder."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def missing(what: str, how: str) -> None:
    """Ends the test."""
    reason = f"{what} is not here: {how}"
    if os.environ.get("DEMAND_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, how: str) -> str:
    """Its path."""
    path = load("binaries").find(name)
    if path is None:
        missing(name, how)
    return str(path)


def run(*command: str, fails: bool = False) -> str:
    """What it says; it must succeed, or fail."""
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (answer.returncode != 0) == fails, f"{' '.join(command)}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout + answer.stderr


def templated(arguments: Sequence[str]) -> str:
    """What the chart becomes."""
    return run(
        program("helm", "python3 dev.py test-deploy brings it"), "template", "roost", str(DEPLOY / "chart"), *arguments
    )
