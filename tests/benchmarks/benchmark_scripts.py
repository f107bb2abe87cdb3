"""Imports scripts of `benchmarks/` and `tools/`, which are no packages: they find each other by their folders."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def load(folders: Sequence[str], *names: str) -> list[Any]:
    """Returns scripts as modules.

    Args:
      folders: Folders of the repository in which they and what they import are looked for, the first one first.
      names: Names of the modules.
    """
    paths = [str(ROOT / folder) for folder in folders]
    sys.path[:0] = paths
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        for path in paths:
            sys.path.remove(path)
