"""How much of Roost there is to read: the syntax nodes of each room, how dense its statements are, and a request's way.

The syntax tree counts what there is to read, however its lines are folded. A cap of nodes is a room's count, rounded up
to the next 2,000: a change that needs more raises it in the same commit and says why; one that gets lighter leaves it.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]

COUNTED_BY: Final = (3, 13)
"""Python version whose syntax tree the table counts; those of other versions differ by some nodes."""

ROOMS: Final = ("server", "engine", "kernels", "tools", "benchmarks")

MOST: Final[Mapping[str, float]] = {
    "nodes of server": 200_000,
    "nodes of engine": 126_000,
    "nodes of kernels": 52_000,
    "nodes of tools": 52_000,
    "nodes of benchmarks": 56_000,
    "nodes a statement of server": 13.5,
    "nodes a statement of engine": 16.4,
    "nodes a statement of kernels": 22.7,
    "branchy functions of server": 9,
    "branchy functions of engine": 7,
    "branchy functions of kernels": 0,
    "files on a request's way": 34,
    "changes of file on a request's way": 90,
}
"""The most that there may be. `tools/request_path.py` says what counts as a request's way."""

_MAX_DECISIONS: Final = 15
"""Decisions of a function beyond which it is branchy."""

_DENSE_ROOMS: Final = ("server", "engine", "kernels")
"""Rooms whose density the table limits."""

_FUNCTION: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_LOOPS: Final = (ast.For, ast.AsyncFor, ast.While)
_BRANCHES: Final = (*_LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.match_case, ast.Assert)


class RoomSize:
    """Counts of the Python files of a room.

    Args:
      texts: Text of each file.
    """

    def __init__(self, *texts: str) -> None:
        self._trees = [ast.parse(text) for text in texts]

    @property
    def nodes(self) -> int:
        """Number of nodes of all syntax trees."""
        return sum(1 for tree in self._trees for _ in ast.walk(tree))

    @property
    def nodes_a_statement(self) -> float:
        """Nodes for each statement inside functions, without docstrings, rounded to a tenth.

        A compound statement counts as one, and so does each statement inside it.
        """
        inner = {id(node) for outer in self._functions for node in ast.walk(outer) if node is not outer}
        outermost = [function for function in self._functions if id(function) not in inner]
        statements = [statement for function in outermost for statement in _statements(function)]
        return round(sum(map(_own_nodes, statements)) / max(len(statements), 1), 1)

    @property
    def branchy_functions(self) -> int:
        """Number of functions with more than `_MAX_DECISIONS` decisions."""
        return sum(_decisions(function) > _MAX_DECISIONS for function in self._functions)

    @cached_property
    def _functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for tree in self._trees for node in ast.walk(tree) if isinstance(node, _FUNCTION)]


def is_counted_here() -> bool:
    """Whether this Python counts the nodes as the table does."""
    return sys.version_info[:2] == COUNTED_BY


def growth(sizes: Mapping[str, float]) -> list[str]:
    """Returns a line for each number that is larger than the table allows."""
    return [f"{name}: {number:,}, and at most {MOST[name]:,}" for name, number in sizes.items() if number > MOST[name]]


def sizes_of_rooms() -> dict[str, float]:
    """Returns the numbers of the table that sources alone decide."""
    rooms = {name: RoomSize(*(path.read_text() for path in sorted((ROOT / name).rglob("*.py")))) for name in ROOMS}
    sizes: dict[str, float] = {f"nodes of {name}": room.nodes for name, room in rooms.items()}
    for name in _DENSE_ROOMS:
        sizes[f"nodes a statement of {name}"] = rooms[name].nodes_a_statement
        sizes[f"branchy functions of {name}"] = rooms[name].branchy_functions
    return sizes


def _statements(function: ast.AST) -> Iterator[ast.stmt]:
    """Yields the statements of a function at any depth, except docstrings."""
    for node in ast.walk(function):
        is_text = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        if isinstance(node, ast.stmt) and node is not function and not is_text:
            yield node


def _own_nodes(statement: ast.stmt) -> int:
    """Returns the number of nodes of a statement without those of the statements inside it."""
    inner = [child for child in ast.iter_child_nodes(statement) if not isinstance(child, ast.stmt)]
    return 1 + sum(_nodes_outside_statements(child) for child in inner)


def _nodes_outside_statements(node: ast.AST) -> int:
    children = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
    return 1 + sum(map(_nodes_outside_statements, children))


def _decisions(function: ast.AST) -> int:
    """Returns the number of decisions of a function, one more than its branches."""
    count = 1
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
    return count
