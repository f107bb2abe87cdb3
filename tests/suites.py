"""Where the tests of each marker run; a test without one runs by default.

| runs | with |
| --- | --- |
| default | `python3 dev.py test`, for which one waits |
| all | `python3 dev.py test --all`, which has the default tests too; `.ci/run` runs it |
| ci | a job of its own, of which `.ci/run` runs all or some |
| night | a job of its own, and `.ci/run nightly` |
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple


class Runs(StrEnum):
    """When tests run that a marker names."""

    DEFAULT = "default"
    ALL = "all"
    CI = "ci"
    NIGHT = "night"


class Suite(NamedTuple):
    """Tests that one marker names.

    Attributes:
      runs: When they run.
      what: What they are, and the command that runs them.
    """

    runs: Runs
    what: str


SUITES: Final = {
    "bits": Suite(
        Runs.DEFAULT, "compares bits, which depend on the processor; once more with python3 dev.py test-bits"
    ),
    "full": Suite(Runs.ALL, "tests more closely what a default test reaches; python3 dev.py test --all"),
    "mesh": Suite(Runs.ALL, "models that are cut over devices and hosts; alone with python3 dev.py test-mesh"),
    "readme": Suite(Runs.CI, "runs README's commands in a clone; python3 dev.py test -m readme"),
    "deploy": Suite(Runs.CI, "needs helm, validators or Prometheus; python3 dev.py test-deploy"),
    "robust": Suite(Runs.CI, "faults and load, done to real servers for minutes; python3 dev.py test-robust"),
    "tpu_compile": Suite(Runs.CI, "compiles for a real TPU, without one; python3 dev.py test-tpu"),
    "gpu_compile": Suite(Runs.CI, "compiles for NVIDIA GPUs, without one; python3 dev.py test-gpu"),
    "browser": Suite(Runs.NIGHT, "opens the chat page in Chromium; python3 dev.py test -m browser"),
    "compat": Suite(Runs.NIGHT, "needs the [compat] extra; python3 dev.py test-compat"),
    "slow": Suite(Runs.NIGHT, "minutes of one server; python3 dev.py test -m slow"),
    "sweep": Suite(Runs.NIGHT, "more cases and examples of large programs; python3 dev.py test-sweep"),
}
"""Markers of the project."""


SKIPS: Final = (
    "no file systems can be mounted here",
    "the system has no socket for both",
    "only root can give a (folder|file)",
    "this is no git checkout",
    "the history is missing",
    "only Python 3.13 counts nodes",
)
"""Regular expressions of the reasons for which a test may be skipped on Linux on x86-64, where nothing else is
missing."""


def unnamed_skips(reasons: Iterable[str]) -> list[str]:
    """Returns the reasons for which no test may be skipped."""
    return sorted({reason for reason in reasons if not any(re.search(skip, reason) for skip in SKIPS)})


def expression(*, run_all: bool) -> str:
    """Returns pytest's expression for the markers of the default tests, or of all."""
    runs = {Runs.DEFAULT, Runs.ALL} if run_all else {Runs.DEFAULT}
    return " and ".join(f"not {marker}" for marker, suite in SUITES.items() if suite.runs not in runs)
