"""Plants mutants in a copy of the tree, each a wrong line, and demands that tests notice every one.

    python tools/mutants.py

A mutant is noticed if its tests fail with it and pass without it. The status is 1 if one is not noticed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]

PYTEST: Final = ("--all", "-x", "-q", "-n0", "-p", "no:cacheprovider")


class Mutant(NamedTuple):
    """A wrong version of a file.

    Attributes:
      file: Path of the file in the tree.
      old: Text that the file has once.
      new: Wrong text in its place.
      tests: Arguments of pytest: the tests that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_FIRST_BLOCK: Final = "(pl.program_id(0) == 0)"
_TPU: Final = "tests/kernels/test_pallas_tpu.py"
_RACES: Final = "tests/kernels/test_races.py"

MUTANTS: Final = (
    Mutant(
        "int8-mlp-quantises-in-block-0-only",
        "kernels/products/pallas_tpu.py",
        "@pl.when(step == 0)",
        f"@pl.when((step == 0) & {_FIRST_BLOCK})",
        (f"{_TPU}::test_int8_gated_mlp",),
    ),
    Mutant(
        "int8-product-quantises-in-block-0-only",
        "kernels/products/pallas_tpu.py",
        "pl.when(pl.program_id(1) == 0)(",
        f"pl.when((pl.program_id(1) == 0) & {_FIRST_BLOCK})(",
        (f"{_TPU}::test_int8_product",),
    ),
    Mutant(
        "argmax-resets-in-block-0-only",
        "kernels/products/pallas_tpu.py",
        "@pl.when(tile == 0)",
        f"@pl.when((tile == 0) & {_FIRST_BLOCK})",
        (f"{_TPU}::test_argmax",),
    ),
    Mutant(
        "attention-starts-a-copy-after-the-last-row",
        "kernels/window_attention/pallas_tpu_decode.py",
        "pl.when(follows)(lambda:",
        "pl.when(follows | is_end)(lambda:",
        (f"{_RACES}::test_kernels_wait_for_their_copies",),
    ),
)
"""Mutants that tests once missed."""


class Tree:
    """A copy of the project, with its compiled kernels, which `path` makes importable as `roost`.

    Args:
      folder: Empty folder.
      commit: Commit whose files to copy; by default those of the working tree.
    """

    def __init__(self, folder: Path, commit: str | None = None) -> None:
        self.root, self.path = folder / "tree", folder / "path"
        listed = ""
        if commit:
            self.root.mkdir()
            archive = subprocess.check_output(["git", "archive", commit], cwd=ROOT)
            subprocess.run(["tar", "-x"], cwd=self.root, input=archive, check=True)
        else:
            listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
        compiled = (path.relative_to(ROOT) for path in ROOT.glob("kernels/native/*.so"))
        for name in (*map(Path, listed.splitlines()), *compiled):
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.root / name)
        self.path.mkdir()
        (self.path / "roost").symlink_to(self.root)

    def run(self, *command: str, seconds: float | None = None, **environment: str) -> str:
        """Runs Python in the tree and returns what it wrote.

        Raises:
          AssertionError: Its status isn't 0.
          subprocess.TimeoutExpired: It took longer than `seconds`.
        """
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # which would leave the process behind
        process = subprocess.Popen(
            [sys.executable, "-P", *command],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.path), "MYPYPATH": str(self.path), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            written, _ = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # and its own processes
            process.wait()
            raise
        assert process.returncode == 0, written
        return written

    def passes(self, tests: Sequence[str], seconds: float | None = None) -> bool:
        """Returns whether tests pass in the tree within `seconds`, given as pytest's arguments."""
        try:
            self.run("-m", "pytest", *PYTEST, *tests, seconds=seconds)
        except (AssertionError, subprocess.TimeoutExpired):
            return False
        return True


def is_noticed(tree: Tree, mutant: Mutant) -> bool:
    """Returns whether the mutant's tests fail with it; the tree stays as it is."""
    file = tree.root / mutant.file
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        return not tree.passes(mutant.tests)
    finally:
        file.write_text(text)


def main() -> int:
    """Tries all mutants; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        tree.run("-m", "pytest", *PYTEST, *(test for mutant in MUTANTS for test in mutant.tests))
        lost = [mutant.name for mutant in MUTANTS if not is_noticed(tree, mutant)]
    print(f"{len(MUTANTS)} mutants, not noticed: {', '.join(lost) or 'none'}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
