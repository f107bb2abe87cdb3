"""Reads what XLA dumps of a program for a GPU: its thunks, which are launches and control flow, and its instructions.

A thunk is a line: a number, a kind and a description. Thunks inside of a loop, a conditional or a command buffer follow
it, indented, under the labels of its parts.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

_THUNK: Final = re.compile(r"^(?P<indent> *)(?P<number>\d+): (?P<kind>k\w+)\s*(?P<text>.*)$")
_LABEL: Final = re.compile(r"^(?P<indent> *)(?P<label>\w+):$")
_SORT: Final = re.compile(r'= .*?\bsort\(|custom_call_target="__cub\$')
_COPY: Final = re.compile(r"= (?P<shape>\w+\[[\d,]*\])\S* (?:copy|copy-start)\(")
_DIMENSIONS: Final = re.compile(r"\w+\[(?P<sizes>[\d,]+)\]")

_CONTROL: Final = ("kAsyncDone", "kAsyncStart", "kCommandBuffer", "kConditional", "kSequential", "kWhile")
"""Thunks that launch nothing themselves."""


@dataclass(frozen=True)
class Thunk:
    """One step of a program.

    Attributes:
      kind: Kind, such as "kKernel".
      text: Description.
      number: Number, unique among those that launch something.
      parts: Thunks inside of it, by the label of the part; "" without a label.
    """

    kind: str
    text: str
    number: int
    parts: dict[str, list["Thunk"]] = field(default_factory=dict)

    @property
    def is_launch(self) -> bool:
        """Whether the thunk itself gives the GPU something to do: a kernel, a library's kernel, or a copy."""
        return self.kind not in _CONTROL

    @property
    def greedy_parts(self) -> list[list["Thunk"]]:
        """Parts that a step of greedy rows executes: of a conditional's branches, the one that launches less."""
        parts = list(self.parts.values())
        return [min(parts, key=count_launches)] if self.kind == "kConditional" else parts


def parse_thunks(text: str) -> list[Thunk]:
    """Returns the thunks of a dump."""
    program: list[Thunk] = []
    open_parts: list[tuple[int, Thunk, str]] = []  # indentation, thunk and label of the parts that lines may belong to
    for line in text.splitlines():
        if label := _LABEL.match(line):
            indent = len(label["indent"])
            while indent and open_parts[-1][0] >= indent:  # the first label of a loop is not indented
                open_parts.pop()
            open_parts[-1] = (*open_parts[-1][:2], label["label"])
            open_parts[-1][1].parts.setdefault(label["label"], [])  # a branch may be empty
        elif found := _THUNK.match(line):
            indent, thunk = len(found["indent"]), Thunk(found["kind"], found["text"], int(found["number"]))
            while open_parts and open_parts[-1][0] >= indent:
                open_parts.pop()
            siblings = open_parts[-1][1].parts.setdefault(open_parts[-1][2], []) if open_parts else program
            siblings.append(thunk)
            open_parts.append((indent, thunk, ""))
    return program


def greedy_path(thunks: Sequence[Thunk]) -> Iterator[Thunk]:
    """Yields every thunk that a step of greedy rows executes, those of loops once."""
    for thunk in thunks:
        yield thunk
        for part in thunk.greedy_parts:
            yield from greedy_path(part)


def count(thunks: Sequence[Thunk], kind: str) -> int:
    """Returns the number of thunks of a kind on the greedy path."""
    return sum(thunk.kind == kind for thunk in greedy_path(thunks))


def count_launches(thunks: Sequence[Thunk]) -> int:
    """Returns the number of launches on the greedy path, those inside of command buffers included."""
    return sum(thunk.is_launch for thunk in greedy_path(thunks))


def count_graph_launches(thunks: Sequence[Thunk]) -> int:
    """Returns the number of launches on the greedy path that command buffers (CUDA graphs) take together."""
    graphs = [thunk for thunk in greedy_path(thunks) if thunk.kind == "kCommandBuffer"]
    return sum(count_launches(part) for graph in graphs for part in graph.parts.values())


def count_sorts(program: str, size: int) -> int:
    """Returns the number of sorts, on any path, along at least `size` elements.

    Args:
      program: The program's instructions after all optimizations.
      size: Least number of elements of the longest axis.
    """
    return sum(_longest_axis(line) >= size for line in program.splitlines() if _SORT.search(line))


def count_copies(program: str, shapes: Collection[str]) -> int:
    """Returns the number of copies, on any path, of arrays of these types, such as "bf16[640,2048,256]"."""
    return sum(found["shape"] in shapes for found in _COPY.finditer(program))


def _longest_axis(line: str) -> int:
    axes = (int(size) for found in _DIMENSIONS.finditer(line) for size in found["sizes"].split(","))
    return max(axes, default=0)
