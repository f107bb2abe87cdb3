"""Proves that a change of tests lost nothing: plants seeded mutants in the code that the tests reach.

    python tools/seeded_mutants.py --since COMMIT TESTS ... [--now TESTS ...] [--of PATH ...] [--seed N]

TESTS are paths in a tree of COMMIT, and --now those in the working tree if they have changed. A mutant is one wrong
expression or statement of a file that both trees share. The test files of the working tree that reach it run with it;
if they pass, those of COMMIT do. The status is 1 if those of COMMIT kill a mutant that lives now.
"""

import argparse
import ast
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Final, NamedTuple

import coverage
from mutants import PYTEST, ROOT, Tree

SOURCES: Final = ("server", "engine", "kernels")
MUTANTS: Final = 20
"""Number of mutants."""

type Reached = dict[str, dict[int, set[str]]]
"""Test files that run a line, by file and line; the name of a line that runs at import or in a subprocess is empty."""

_EXCHANGED: Final[dict[type[ast.AST], type[ast.AST]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_DROPPED: Final = (ast.AugAssign, ast.Break, ast.Continue, ast.Delete, ast.Raise)

_PLUGIN: Final = """
import coverage

def pytest_runtest_protocol(item):
    coverage.Coverage.current().switch_context(item.nodeid.partition("::")[0])
"""


class Mutant(NamedTuple):
    """A wrong version of a file.

    Attributes:
      lines: Lines of the statement, without its body; the mutant counts as reached if one of them is.
    """

    file: str
    lines: range
    kind: str
    change: str
    text: str


def _wrong_expressions(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    wrong = deepcopy(node)
    match wrong:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in _EXCHANGED:
            wrong.op = _EXCHANGED[type(op)]()
            yield "operator", wrong
        case ast.Compare(ops=[op, *others]) if type(op) in _EXCHANGED:
            wrong.ops = [_EXCHANGED[type(op)](), *others]
            yield "comparison", wrong
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "constant", ast.Constant(value + 1)
        case ast.Call(args=[first, second, *others]) if not isinstance(second, ast.Starred):
            wrong.args = [second, first, *others]
            yield "arguments", wrong
        case ast.IfExp(test=test):
            wrong.test = ast.UnaryOp(ast.Not(), test)
            yield "condition", wrong
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "condition", operand


def _is_droppable(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=value):
            return isinstance(value, ast.Call | ast.Await)
        case ast.Assign(targets=[target]):
            return isinstance(target, ast.Attribute | ast.Subscript)
    return isinstance(statement, _DROPPED)


def _wrong_nodes(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.stmt | ast.expr, str, str]]:
    """Yields each statement, the node of it that a mutant replaces, the mutant's kind and its text."""
    for statement in (node for node in ast.walk(tree) if isinstance(node, ast.stmt)):
        if _is_droppable(statement):
            yield statement, statement, "statement", "pass"
        if isinstance(statement, ast.If | ast.While):
            yield statement, statement.test, "condition", f"not ({ast.unparse(statement.test)})"
        nodes = [node for node in ast.iter_child_nodes(statement) if not isinstance(node, ast.stmt)]
        while nodes:
            node = nodes.pop()
            nodes += (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt))
            if isinstance(node, ast.expr):
                yield from (
                    (statement, node, kind, f"({ast.unparse(wrong)})") for kind, wrong in _wrong_expressions(node)
                )


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """Yields every mutant of a file."""
    starts, code = [0], text.encode()
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for statement, node, kind, new in _wrong_nodes(ast.parse(text)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        body: list[ast.stmt] = getattr(statement, "body", [])
        last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
        lines = range(statement.lineno, max(last, statement.lineno) + 1)
        old = " ".join(code[begin:end].decode().split())
        change = f"{node.lineno}: {kind}: {old[:60]} -> {new[:60]}"
        yield Mutant(file, lines, kind, change, (code[:begin] + new.encode() + code[end:]).decode())


def chosen(candidates: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """Returns mutants of each file and kind in turn, in an order that the seed gives."""
    groups: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    for mutant in candidates:
        groups[mutant.file, mutant.kind].append(mutant)
    draw = random.Random(seed)
    shuffled = [draw.sample(group, len(group)) for group in groups.values()]
    turns = zip_longest(*draw.sample(shuffled, len(shuffled)))
    return [mutant for turn in turns for mutant in turn if mutant is not None][:count]


def subject(test: str) -> str:
    """Returns the file or folder of sources that a path of tests mirrors."""
    path = Path(*Path(test.partition("::")[0]).parts[1:])
    file = path.with_name(path.name.removeprefix("test_"))
    return str(file if file.suffix != ".py" or (ROOT / file).is_file() else file.parent)


def measure(tree: Tree, tests: Sequence[str]) -> Reached:
    """Returns which lines of the tree's sources its tests reach.

    Raises:
      AssertionError: They fail.
    """
    folder = tree.path / "coverage"
    folder.mkdir()
    (tree.path / "contexts_of_files.py").write_text(_PLUGIN)
    settings = tree.path / "coverage.ini"  # pyproject.toml's would import packages, and NumPy a second time
    settings.write_text(f"[run]\npatch = subprocess\nsource = {','.join(str(tree.root / room) for room in SOURCES)}\n")
    run = ["-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-p", "contexts_of_files"]
    tree.run(*run, *PYTEST, *tests, COVERAGE_FILE=str(folder / "data"))
    data = coverage.CoverageData(no_disk=True)
    for file in folder.iterdir():
        part = coverage.CoverageData(str(file))
        part.read()
        data.update(part)
    return {
        str(Path(file).relative_to(tree.root.resolve())): {
            line: set(names) for line, names in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }


class Run:
    """Tests of a tree, and the lines that they reach."""

    def __init__(self, tree: Tree, tests: Sequence[str]) -> None:
        self._tree, self._tests = tree, tests
        begin = time.monotonic()
        self._reached = measure(tree, tests)
        self._seconds = 20 + 2 * (time.monotonic() - begin)  # a mutant that hangs is killed too

    def reaches(self, mutant: Mutant) -> set[str]:
        lines = self._reached.get(mutant.file, {})
        return set().union(*(lines.get(line, set()) for line in mutant.lines))

    def kills(self, mutant: Mutant) -> bool:
        """Returns whether tests that reach the mutant fail with it; the tree stays as it is."""
        files = self.reaches(mutant)
        tests = self._tests if "" in files else sorted(files)
        path = self._tree.root / mutant.file
        text = path.read_text()
        path.write_text(mutant.text)
        try:
            return bool(tests) and not self._tree.passes(tests, self._seconds)
        finally:
            path.write_text(text)

    def candidates(self, sources: Sequence[str], other: Path) -> Iterator[Mutant]:
        """Yields the mutants that the tests reach in files below `sources` that are the same below `other`."""
        for file in sorted(self._reached):
            text, same = (self._tree.root / file).read_text(), other / file
            is_wanted = any(Path(file).is_relative_to(source) for source in sources)
            if is_wanted and same.is_file() and same.read_text() == text:
                yield from filter(self.reaches, mutants(file, text))


def main(arguments: Sequence[str]) -> int:
    """Tries mutants with both trees' tests; returns the exit status."""
    parser = argparse.ArgumentParser(prog="seeded_mutants.py", description=__doc__)
    parser.add_argument("tests", nargs="+", help="files and folders of tests in the tree of --since")
    parser.add_argument("--since", required=True, metavar="COMMIT", help="commit before the tests changed")
    parser.add_argument("--now", nargs="+", metavar="TESTS", help="paths of the working tree's tests, if others")
    parser.add_argument("--of", nargs="+", metavar="PATH", help="sources to change; by default those that TESTS mirror")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    sources = options.of or [subject(test) for test in options.tests]
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        now_tree = Tree(Path(new))
        before, now = Run(Tree(Path(old), options.since), options.tests), Run(now_tree, options.now or options.tests)
        return report(before, now, chosen(before.candidates(sources, now_tree.root), MUTANTS, options.seed))


def report(before: Run, now: Run, drawn: Sequence[Mutant]) -> int:
    """Prints which tests kill each mutant, those of before only where those of now don't; returns the exit status."""
    counts = dict.fromkeys(("killed", "lives, as before", "LOST: killed before"), 0)
    killed, lived, lost = counts
    for mutant in drawn:
        found = killed if now.kills(mutant) else lost if before.kills(mutant) else lived
        counts[found] += 1
        print(f"{mutant.file}:{mutant.change}: {found}", flush=True)
    print(f"{len(drawn)} mutants: {', '.join(f'{count} {found}' for found, count in counts.items())}")
    return 1 if counts[lost] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
