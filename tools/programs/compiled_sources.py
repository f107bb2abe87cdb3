"""Tells whether the programs that tests compile for chips may have changed since they were last compiled.

    python tools/programs/compiled_sources.py FOLDER [--write]

The fingerprint of a folder of tests covers the code of its files and of the modules of Roost that they import, directly
or not, and the locks of its environment. Comments, docstrings and layout don't count, nor do the native kernels, which
only programs for CPUs call. `FOLDER/compiled.sha256` has the fingerprint of the last time that all tests of the folder
passed. The status is 0 if it is today's, else 1.
"""

import ast
import hashlib
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]


class Compiled(NamedTuple):
    """Dependencies of a folder's tests beside their imports.

    Attributes:
      locks: Names of the locks of their environment.
      started: Patterns of the modules that they start as processes.
    """

    locks: tuple[str, ...]
    started: tuple[str, ...]


FOLDERS: Final = {
    "tests/tpu": Compiled(("dev", "tpu"), ("tools/programs/tpu_*.py",)),
    "tests/gpu": Compiled(("dev", "gpu-compile"), ("tools/programs/gpu_*.py",)),
}
"""Folders of tests that compile for chips."""

_PACKAGES: Final = ("server", "engine", "kernels")
_CPU_ONLY: Final = Path("kernels", "native")
_SEARCHED: Final = ("", "tests", "tests/engine", "tests/kernels", "tools/programs", "benchmarks")
_NO_CODE: Final = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING}


def fingerprint(folder: str) -> str:
    """Returns 64 hexadecimal digits for all that the programs of a folder's tests depend on."""
    digest = hashlib.sha256()
    patterns = (f"{folder}/*.py", *FOLDERS[folder].started)
    for path in sorted(sources(path for pattern in patterns for path in ROOT.glob(pattern))):
        digest.update(f"{path.relative_to(ROOT)}\0{code(path.read_text())}\0".encode())
    for lock in FOLDERS[folder].locks:
        digest.update((ROOT / "requirements" / f"{lock}.txt").read_bytes())
    return digest.hexdigest()


def sources(paths: Iterable[Path]) -> set[Path]:
    """Returns these modules and those of the checkout that they import, directly or not, without those for CPUs."""
    found: set[Path] = set()
    left = list(paths)
    while left:
        path = left.pop()
        if path not in found and path.parent != ROOT / _CPU_ONLY:
            found.add(path)
            left.extend(imported(path))
    return found


def imported(path: Path) -> Iterator[Path]:
    """Yields the modules of the checkout that a module's import statements name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ("roost", *path.relative_to(ROOT).parts[: -node.level]) if node.level else ()
            module = ".".join(filter(None, (*package, node.module)))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from filter(None, map(_file_of, names))


def _file_of(module: str) -> Path | None:
    """Returns the file of a module, if the checkout has one."""
    first, *rest = module.split(".")
    if first == "roost":
        bases = [ROOT.joinpath(*rest)] if rest and rest[0] in _PACKAGES else []
    else:
        bases = [ROOT.joinpath(folder, first, *rest) for folder in _SEARCHED]
    candidates = (each for base in bases for each in (base.with_suffix(".py"), base / "__init__.py"))
    return next((path for path in candidates if path.is_file()), None)


def code(text: str) -> str:
    """Returns the tokens of a module without comments, docstrings and blank lines."""
    tokens = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.type not in _NO_CODE]
    kept: list[str] = []
    begins_statement = True
    for index, token in enumerate(tokens):
        is_whole = token.type == tokenize.STRING and begins_statement and tokens[index + 1].type == tokenize.NEWLINE
        if not is_whole:
            kept.append(tokenize.tok_name[token.type] if token.type == tokenize.INDENT else token.string)
        begins_statement = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return "\0".join(kept)


def main(arguments: Sequence[str]) -> int:
    """Compares or writes the fingerprint of a folder; returns the exit status."""
    folder, *options = arguments
    kept, now = ROOT / folder / "compiled.sha256", fingerprint(folder)
    if "--write" in options:
        kept.write_text(f"{now}\n")
        return 0
    return int(not kept.is_file() or kept.read_text().strip() != now)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
