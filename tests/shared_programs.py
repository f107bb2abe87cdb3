"""Compiled programs that the processes of one test run share."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = "ROOST_COMPILE_CACHE"
"""Environment variable that names the folder; the servers that tests start inherit it."""


def open_folder() -> tempfile.TemporaryDirectory[str] | None:
    """Makes an empty folder for the programs of this run; returns None in a worker, which inherits the run's folder."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return None
    folder = tempfile.TemporaryDirectory(prefix="roost-programs-")
    os.environ[_FOLDER] = folder.name
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # else each server compiles JAX's sources for four seconds
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder.name}/bytecode"
    return folder


def folder() -> Path:
    return Path(os.environ[_FOLDER])


@contextmanager
def compiled_once(name: str) -> Iterator[None]:
    """Lets one process of the run compile the programs of this name; the others wait, and find them in the folder.

    JAX's cache could hand out a file that is written at the same moment, and two workers would compile everything.
    """
    done = folder() / f"{name}.done"
    if done.exists():
        yield
        return
    with (folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            fcntl.flock(lock, fcntl.LOCK_UN)
        yield
        done.touch()
