"""Programs that run where some packages are missing."""

import subprocess
import sys

WEB = ("fastapi", "starlette", "uvicorn")

FORBIDDING = """
import sys
from importlib.abc import MetaPathFinder

class Forbidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError("this program must not import " + name)

sys.meta_path.insert(0, Forbidden())
"""
"""Start of a program that cannot import some packages."""


def run(program: str, *forbidden: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process that cannot import some packages."""
    text = FORBIDDING.format(names=forbidden) + program
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=300)
