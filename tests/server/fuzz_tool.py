"""`benchmarks/fuzz.py`, which is in no package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def load_fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
