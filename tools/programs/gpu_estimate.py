"""Estimates the time of a compiled program for a GPU as the sum of its launches, kind by kind.

A launch takes the longest of three times: its bytes at `BANDWIDTH_SHARE` of the card's bandwidth, its matrix products
at the card's peak, and its latency. That is the time of each wave of blocks that the multiprocessors hold at a time:
`LATENCY_SECONDS`, and what a block executes (`gpu_dump.block_cycles`) at the card's clock. The launches of a step
follow one another, so their times add up: a step that is bound by memory in one launch and by products in another is
slower than each bound of the whole step.

Bytes are those of the instruction that a launch computes (`tpu_hlo`): arrays that the caches hold count as if main
memory held them, and of the state pool only the rows of the step, in decode attention the busy ones. Waves of cuBLAS's
kernels are not known; each counts as one. What blocks execute counts for Roost's kernels whose loops have known passes.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gpu_dump import KernelResources, Thunk, launch_of
from roost.engine.capacity.chips import Card
from roost.engine.capacity.roofline import Peak
from tpu_hlo import ArrayType, Computation, Cost, Instruction, Module, cost_of

BANDWIDTH_SHARE: Final = 0.9
"""Share of the card's bandwidth that long copies reach."""

LATENCY_SECONDS: Final = 2e-6
"""Time of one wave of blocks without work: a launch in a graph, a load and a store, one after the other."""

_ANNOTATION: Final = re.compile(
    r'thunk_info \{\n\s+profile_annotation: "(?P<name>[^"]*)"\n\s+thunk_id: (?P<number>\d+)\n'
)
_CONTRACTED: Final = re.compile(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
_TRIPS: Final = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_KERNEL: Final = re.compile(r'op_name="[^"]*/(\w+)/pallas_call"')


@dataclass(frozen=True)
class Part:
    """Launches of one kind in a step of greedy rows.

    Attributes:
      name: Name of a kernel of Roost, "products" or "others".
      launches: Number of launches, those of loops once for each pass.
      seconds: Sum of the longest of the three times of each launch.
      memory_seconds, tensor_seconds, latency_seconds: Sums of each of the three times.
    """

    name: str
    launches: int
    seconds: float
    memory_seconds: float
    tensor_seconds: float
    latency_seconds: float


class Sizes(NamedTuple):
    """Sizes that decide what launches of a program read.

    Attributes:
      rows: Slots that a decode step computes; all slots for other programs.
      busy: Those of them with a request, whose windows attention reads.
      slots: Slots of the pool.
      window: Tokens of an attention window.
    """

    rows: int
    busy: int
    slots: int
    window: int


def names_of_thunks(metadata: str) -> Mapping[int, str]:
    """Returns the name of the instruction that each thunk executes, by the thunk's number."""
    return {int(found["number"]): found["name"] for found in _ANNOTATION.finditer(metadata)}


def estimate(
    module: Module,
    thunks: Sequence[Thunk],
    names: Mapping[int, str],
    kernels: Sequence[KernelResources],
    card: Card,
    peak: Peak,
    sizes: Sizes,
) -> tuple[Part, ...]:
    """Returns the parts of a step of greedy rows, the longest first.

    Args:
      module: Instructions of the program.
      thunks: Thunks of the program.
      names: Names of their instructions; see `names_of_thunks`.
      kernels: What Roost's own kernels take.
      card: Card that the program was compiled for.
      peak: Its peak rates.
      sizes: Sizes of the step.
    """
    places = {name: (where, each) for where in module.computations.values() for name, each in where.items()}
    known = {kernel.name: kernel for kernel in kernels}
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0.0])
    for thunk, times in _launches(thunks, names, places, 1):
        kind, cost = _cost(module, places.get(names.get(thunk.number, "")), sizes)
        memory = cost.hbm_bytes / (BANDWIDTH_SHARE * peak.bytes_per_second)
        tensor = cost.flops / peak.flops_per_second + cost.int8_ops / peak.int8_per_second
        latency = _latency(thunk, known, card)
        for i, number in enumerate((1, max(memory, tensor, latency), memory, tensor, latency)):
            sums[kind][i] += times * number
    parts = (Part(kind, int(count), *seconds) for kind, (count, *seconds) in sums.items())
    return tuple(sorted(parts, key=lambda part: -part.seconds))


def _launches(
    thunks: Sequence[Thunk],
    names: Mapping[int, str],
    places: Mapping[str, tuple[Computation, Instruction]],
    times: int,
) -> Iterator[tuple[Thunk, int]]:
    """Yields the launches of a step of greedy rows, each with the number of times that loops repeat it."""
    for thunk in thunks:
        if thunk.is_launch:
            yield thunk, times
        trips = 1
        if thunk.kind == "kWhile" and (found := places.get(names.get(thunk.number, ""))) is not None:
            known = _TRIPS.search(found[1].attributes)
            trips = int(known[1]) if known else 1
        for part in thunk.greedy_parts:
            yield from _launches(part, names, places, times * trips)


def _latency(thunk: Thunk, kernels: Mapping[str, KernelResources], card: Card) -> float:
    """Returns the time of the waves of a launch's blocks; what is not a kernel of known blocks has one."""
    launch = launch_of(thunk)
    if launch is None:
        return LATENCY_SECONDS
    by_threads = min(card.threads // launch.threads, card.shared_memory // (launch.shared_bytes + 1024), 32)
    kernel = kernels.get(launch.name)
    held = (kernel and kernel.blocks_per_multiprocessor) or max(by_threads, 1)
    executing = ((kernel and kernel.cycles) or 0) / (1e9 * card.clock_ghz)
    return -(-launch.blocks // (card.multiprocessors * held)) * (LATENCY_SECONDS + executing)


def _cost(module: Module, place: tuple[Computation, Instruction] | None, sizes: Sizes) -> tuple[str, Cost]:
    """Returns the part that an instruction belongs to, and what it moves and multiplies."""
    if place is None:  # a copy of a slice, whose bytes no instruction shows
        return "others", Cost(0, 0, 0)
    where, instruction = place
    operands = [where[name].outputs[0] for name in instruction.operands if where[name].outputs]
    if "__cublas" in instruction.attributes:
        return "products", _product(operands, instruction)
    if found := _KERNEL.search(instruction.attributes):
        return found[1], _kernel(found[1], operands, instruction, sizes)
    return "others", cost_of(module, where, instruction)


def _product(operands: Sequence[ArrayType], instruction: Instruction) -> Cost:
    """Returns the cost of a call of cuBLAS; its other outputs are work space."""
    left, output = operands[0], instruction.outputs[0]
    found = _CONTRACTED.search(instruction.attributes)
    contracted = math.prod(left.shape[int(axis.strip('"'))] for axis in found[1].split(",")) if found else 1
    products, moved = 2.0 * math.prod(output.shape) * contracted, sum(x.num_bytes for x in (*operands, output))
    return Cost(0.0, products, moved) if left.dtype == "s8" else Cost(products, 0.0, moved)


def _kernel(name: str, operands: Sequence[ArrayType], instruction: Instruction, sizes: Sizes) -> Cost:
    """Returns the cost of one of Roost's kernels: its arrays once, and the products of attention."""
    is_attention = name.startswith("window_attention")
    rows = sizes.busy if is_attention else sizes.rows
    moved = sum(_bytes_of_rows(x, rows, sizes.slots) for x in (*operands, *instruction.outputs))
    if not is_attention:
        return Cost(0.0, 0.0, moved)
    queries = next(x for x in operands if len(x.shape) >= 3)
    return Cost(4.0 * math.prod(queries.shape) * sizes.window * sizes.busy / sizes.rows, 0.0, moved)


def _bytes_of_rows(array: ArrayType, rows: int, slots: int) -> int:
    """Returns the bytes of an array; of the state pool those of some rows."""
    return array.num_bytes * rows // slots if slots in array.shape else array.num_bytes
