"""Reads what XLA dumps of a program for a GPU: its launches and control flow, and what its kernels take.

A thunk is a launch or control flow, and a line of the dump: a number, a kind and a description. Thunks inside of a
loop, a conditional or a command buffer follow it, indented, under the labels of its parts.

XLA hands each kernel's PTX to NVIDIA's nvJitLink. The same PTX is linked here once more, because only then the linker
reports registers and spills. ptxas by itself allocates registers in another way. The PTX also has the loops of a
kernel, from which `block_cycles` counts what one of its blocks executes.
"""

import ctypes
import importlib.util
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from roost.engine.capacity.chips import Card

_THUNK: Final = re.compile(r"^(?P<indent> *)(?P<number>\d+): (?P<kind>k\w+)\s*(?P<text>.*)$")
_LABEL: Final = re.compile(r"^(?P<indent> *)(?P<label>\w+):$")
_SORT: Final = re.compile(r'= .*?\bsort\(|custom_call_target="__cub\$')
_COPY: Final = re.compile(r"= (?P<shape>\w+\[[\d,]*\])\S* (?:copy|copy-start)\(")
_DIMENSIONS: Final = re.compile(r"\w+\[(?P<sizes>[\d,]+)\]")

_CONTROL: Final = ("kAsyncDone", "kAsyncStart", "kCommandBuffer", "kConditional", "kSequential", "kWhile")
"""Thunks that launch nothing themselves."""

_LAUNCH: Final = re.compile(
    r"\] +(?P<name>[\w.]+) grid: \[(?P<grid>[\d, ]+)\] threads: \[(?P<threads>[\d, ]+)\] +"
    r"shared_memory: (?P<shared>\d+) bytes"
)
_ENTRY: Final = re.compile(r"^\.visible \.entry (\w+)\(", re.MULTILINE)
_TARGET: Final = re.compile(r"^\.target (\w+)", re.MULTILINE)
_REPORT: Final = re.compile(
    r"Function properties for (?P<name>\w+)\n.*?(?P<spilled>\d+) bytes spill stores"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)

_BRANCH: Final = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")
_WAIT: Final = re.compile(r"cp\.async\.wait_group\s+0;")

LOAD_CYCLES: Final = 260
"""Cycles of a load that the second-level cache answers, on an H100 (arXiv 2501.12084)."""

_SCHEDULERS: Final = 4
"""Schedulers of a multiprocessor. Each issues an instruction of one warp per cycle."""

_WARP: Final = 32
_REGISTERS: Final = 65_536
"""Registers of a multiprocessor, a quarter for each of its schedulers; a warp takes them in units of 256."""

_RESERVED_BYTES: Final = 1024
"""Shared memory of a block that the driver takes."""

_PTX: Final = 2
"""nvJitLink's number of inputs in PTX."""


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


class Launch(NamedTuple):
    """Launch of a kernel.

    Attributes:
      name: Name of the kernel.
      blocks: Number of its blocks.
      threads: Threads of a block.
      shared_bytes: Shared memory of a block.
    """

    name: str
    blocks: int
    threads: int
    shared_bytes: int


@dataclass(frozen=True)
class KernelResources:
    """What one kernel of a program takes.

    Attributes:
      name: Name of the kernel.
      launches: Number of launches on the greedy path.
      threads: Threads of a block.
      shared_bytes: Shared memory of a block.
      registers: Registers of a thread; None where nvJitLink is not installed, as in the two below.
      spilled_bytes: Bytes that a thread stores because registers do not suffice.
      blocks_per_multiprocessor: Number of blocks that a multiprocessor holds at a time.
      cycles: Cycles of one block by itself; see `block_cycles`.
    """

    name: str
    launches: int
    threads: int
    shared_bytes: int
    registers: int | None
    spilled_bytes: int | None
    blocks_per_multiprocessor: int | None
    cycles: int | None = None


def kernel_resources(
    names: Mapping[str, int | None], thunks: Sequence[Thunk], dump: Path, card: Card
) -> tuple[KernelResources, ...]:
    """Returns what kernels of a program take, in the order of their names.

    Args:
      names: Names of the kernels, of which the program may lack some, and passes of their loops; see `block_cycles`.
      thunks: Thunks of the program.
      dump: Folder with the PTX that XLA dumped (`xla_dump_emitter_re=^ptx$`).
      card: Card that the program was compiled for.
    """
    launches = [found for thunk in greedy_path(thunks) if (found := launch_of(thunk)) is not None]
    by_name = {name: [found for found in launches if found.name == name] for name in sorted(names)}
    sources = {
        name: text for text in (path.read_text() for path in dump.glob("*.ptx")) for name in _ENTRY.findall(text)
    }
    return tuple(_resources(found, sources.get(name), card, names[name]) for name, found in by_name.items() if found)


def launch_of(thunk: Thunk) -> Launch | None:
    """Returns the kernel that a thunk launches; None for a copy, a library's kernel or control flow."""
    found = _LAUNCH.search(thunk.text)
    if found is None:
        return None
    blocks, threads = (math.prod(map(int, found[size].split(","))) for size in ("grid", "threads"))
    return Launch(found["name"], blocks, threads, int(found["shared"]))


def _resources(launches: Sequence[Launch], ptx: str | None, card: Card, passes: int | None) -> KernelResources:
    name, _, threads, shared = launches[0]
    report = None if ptx is None else link_report(ptx)
    reported = None if report is None else parse_report(report).get(name)
    registers, spilled = reported or (None, None)
    blocks = None if registers is None else blocks_per_multiprocessor(card, threads, registers, shared)
    cycles = None if ptx is None else block_cycles(ptx, name, threads, passes)
    return KernelResources(name, len(launches), threads, shared, registers, spilled, blocks, cycles)


def block_cycles(ptx: str, name: str, threads: int, passes: int | None) -> int | None:
    """Returns the cycles in which a multiprocessor executes one block of a kernel, at least.

    Each scheduler issues the instructions of its share of the warps. A wait for all copies from memory takes a load of
    the second-level cache: a loop with two stages starts the copies of its next pass after the last use of this one's.
    Other loads, and waits of warps for one another, don't count.

    Args:
      ptx: Text with the kernel.
      name: Name of the kernel.
      threads: Threads of a block.
      passes: Passes of each loop of the kernel, which are not nested.

    Returns:
      The cycles; None if the kernel has loops and `passes` is None.
    """
    text = ptx.partition(f".entry {name}(")[2].partition("\n}")[0]
    lines = [line.strip() for line in text.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    branches = [(labels[found[1]], i) for i, line in enumerate(lines) if (found := _BRANCH.search(line))]
    looped = {i for first, last in branches for i in range(first, last + 1)}  # no lines if a branch skips some
    if looped and passes is None:
        return None
    warps, cycles = -(-threads // (_WARP * _SCHEDULERS)), 0
    for i, line in enumerate(lines):
        once = LOAD_CYCLES if _WAIT.match(line) else 0
        once += warps if line.endswith(";") and line[0] not in "./" else 0
        cycles += once * (passes or 1) if i in looped else once
    return cycles


def parse_report(report: str) -> dict[str, tuple[int, int]]:
    """Returns registers and spilled bytes by kernel, from the linker's report."""
    return {found["name"]: (int(found["registers"]), int(found["spilled"])) for found in _REPORT.finditer(report)}


def blocks_per_multiprocessor(card: Card, threads: int, registers: int, shared_bytes: int) -> int:
    """Returns the number of blocks of a kernel that a multiprocessor holds at a time.

    Args:
      card: The card.
      threads: Threads of a block.
      registers: Registers of a thread.
      shared_bytes: Shared memory of a block.
    """
    warps = -(-threads // _WARP)
    registers_of_warp = -(-registers * _WARP // 256) * 256
    return min(
        4 * (_REGISTERS // 4 // registers_of_warp) // warps,
        card.threads // (warps * _WARP),
        card.shared_memory // (shared_bytes + _RESERVED_BYTES),
        24 if card.capability == (8, 9) else 32,
    )


def link_report(ptx: str) -> str | None:
    """Links PTX for its target and returns the linker's report; None where nvJitLink is not installed."""
    library, target = _library(), _TARGET.search(ptx)
    if library is None or target is None:
        return None
    linker, source = ctypes.c_void_p(), ptx.encode()
    options = (ctypes.c_char_p * 2)(f"-arch={target[1]}".encode(), b"-verbose")
    _check(library.nvJitLinkCreate(ctypes.byref(linker), len(options), options))
    try:
        _check(library.nvJitLinkAddData(linker, _PTX, source, ctypes.c_size_t(len(source) + 1), b"kernel"))
        _check(library.nvJitLinkComplete(linker))
        size = ctypes.c_size_t()
        _check(library.nvJitLinkGetInfoLogSize(linker, ctypes.byref(size)))
        report = ctypes.create_string_buffer(size.value + 1)
        _check(library.nvJitLinkGetInfoLog(linker, report))
    finally:
        library.nvJitLinkDestroy(ctypes.byref(linker))
    return report.value.decode()


def _library() -> Any:
    """Returns nvJitLink, which comes with JAX's CUDA plugin; None if it is not installed."""
    packages = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in (packages and packages.submodule_search_locations) or ()]
    paths = sorted(chain.from_iterable(folder.glob("*/lib/libnvJitLink.so.*") for folder in folders))
    return ctypes.CDLL(str(paths[-1])) if paths else None


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"nvJitLink failed with status {status}")
