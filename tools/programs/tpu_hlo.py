"""Reads the text of a compiled TPU program and costs its instructions one by one.

The compiler's own totals (`cost_analysis`) cannot be used for a served program: they count every branch of a
conditional, moves between two arrays of on-chip memory, and int8 products at bfloat16's rate. So the same additive
rule is applied here to the instructions that one run executes: an instruction takes as long as its products at the
chip's peak, or as its bytes of main memory (HBM) at the chip's bandwidth, whichever is longer.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

BITS: Final[Mapping[str, int]] = {"pred": 8, "s4": 4, "u4": 4}
"""Bits of the element types whose name does not end with their number."""

FREE: Final = frozenset(
    ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "after-all", "while", "conditional")
)
"""Operations that move nothing themselves."""

_ARRAY: Final = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED: Final = re.compile(r"(?:calls|body|condition|true_computation|false_computation)=%([\w.\-]+)")


@dataclass(frozen=True, slots=True)
class ArrayType:
    """Type of an array and the memory in which it lies: 0 is the main memory."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def num_bytes(self) -> int:
        """Number of bytes without padding."""
        bits = BITS.get(self.dtype) or int(re.sub(r"\D*(\d+).*", r"\1", self.dtype) or 0)
        return math.prod(self.shape) * bits // 8

    @property
    def hbm_bytes(self) -> int:
        """Number of bytes in main memory."""
        return 0 if self.space else self.num_bytes


@dataclass(frozen=True, slots=True)
class Instruction:
    """One HLO instruction.

    Attributes:
      name: Unique name.
      opcode: Name of the operation.
      outputs: Types of its arrays.
      operands: Names of the operands.
      attributes: Text behind the operands; that of a parameter begins with its number.
      is_root: Whether its value is that of its computation.
    """

    name: str
    opcode: str
    outputs: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def is_free(self) -> bool:
        """Whether it moves nothing itself."""
        return self.opcode in FREE or self.opcode.endswith("-done")

    @property
    def is_asynchronous(self) -> bool:
        """Whether it starts a copy that runs beside other instructions."""
        return self.opcode in ("copy-start", "slice-start")

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that a fusion or a loop calls."""
        return tuple(_CALLED.findall(self.attributes))

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the computations of a conditional's branches; the false one is the first."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed is not None:
            return tuple(re.findall(r"%([\w.\-]+)", listed[1]))
        return tuple(
            found[1]
            for which in ("false", "true")
            if (found := re.search(rf"{which}_computation=%([\w.\-]+)", self.attributes))
        )


type Computation = Mapping[str, Instruction]
"""Instructions of a computation by name, in order."""


@dataclass(frozen=True, slots=True)
class Module:
    """A compiled program.

    Attributes:
      computations: All computations by name.
      entry: Name of the one that the program runs.
    """

    computations: Mapping[str, Computation]
    entry: str


def parse_module(text: str) -> Module:
    """Returns the program in the text of a compiled HLO module."""
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        begins = re.match(r"(ENTRY )?%([\w.\-<>]+) \(.*\{$", line)
        if begins is not None:
            current = computations.setdefault(begins[2], {})
            entry = begins[2] if begins[1] else entry
        elif line.startswith("  ") and " = " in line:
            instruction = _parse_instruction(line.strip())
            current[instruction.name] = instruction
    return Module(computations, entry)


def _parse_instruction(line: str) -> Instruction:
    is_root = line.startswith("ROOT ")
    name, rest = line.removeprefix("ROOT ").removeprefix("%").split(" = ", 1)
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    outputs = tuple(_array_type(*found) for found in _ARRAY.findall(rest[:end]))
    opcode, rest = rest[end:].strip().split("(", 1)
    end = _closing("(" + rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[: end - 1]))
    attributes = rest if opcode == "parameter" else rest[end - 1 :]
    return Instruction(name, opcode, outputs, operands, attributes, is_root)


def _closing(text: str) -> int:
    """Returns the index behind the parenthesis that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _array_type(dtype: str, shape: str, layout: str) -> ArrayType:
    space = re.search(r"S\((\d+)\)", layout)
    return ArrayType(dtype, tuple(int(n) for n in shape.split(",") if n), int(space[1]) if space else 0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an instruction computes and moves.

    Attributes:
      flops: Operations of its matrix products, other than int8's.
      int8_ops: Operations of its int8 matrix products.
      hbm_bytes: Bytes that it reads from and writes to main memory.
    """

    flops: float
    int8_ops: float
    hbm_bytes: int


def cost_of(module: Module, computation: Computation, instruction: Instruction) -> Cost:
    """Returns the cost of an instruction; a kernel's is its `CostEstimate`, less the arrays that lie on the chip."""
    if instruction.is_free:
        return Cost(0, 0, 0)
    flops, int8_ops = _products(module, computation, instruction)
    return Cost(flops, int8_ops, _moved(module, computation, instruction))


def _operand_types(computation: Computation, instruction: Instruction) -> list[ArrayType]:
    return [computation[name].outputs[0] for name in instruction.operands if computation[name].outputs]


def _estimate(instruction: Instruction, field: str) -> int:
    found = re.search(rf'"cost_estimate":\{{[^}}]*"{field}":"(\d+)"', instruction.attributes)
    return int(found[1]) if found else 0


def _products(module: Module, computation: Computation, instruction: Instruction) -> tuple[float, float]:
    operands = _operand_types(computation, instruction)
    is_int8 = any(operand.dtype == "s8" for operand in operands)
    flops, int8_ops = 0.0, 0.0
    if instruction.opcode == "custom-call":
        flops = float(_estimate(instruction, "flops"))
    elif instruction.opcode in ("dot", "convolution"):
        flops = 2.0 * math.prod(instruction.outputs[0].shape) * _contracted(operands, instruction.attributes)
    elif instruction.opcode == "fusion":
        for called in instruction.called:
            inner = module.computations[called]
            for part in inner.values():
                more = _products(module, inner, part)
                flops, int8_ops = flops + more[0], int8_ops + more[1]
        return flops, int8_ops
    return (0.0, flops) if is_int8 else (flops, 0.0)


def _contracted(operands: list[ArrayType], attributes: str) -> int:
    """Returns the number of products that are summed for an element of a dot or a convolution."""
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
    if dims is not None:
        return math.prod(operands[0].shape[int(i)] for i in dims[1].split(",") if i)
    labels = re.search(r"dim_labels=\w+_(\w+)->", attributes)
    assert labels is not None, attributes
    kernel = operands[1].shape
    return math.prod(kernel) // kernel[labels[1].index("o")]


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    operands = _operand_types(computation, instruction)
    match instruction.opcode:
        case "custom-call" if "tpu_custom_call" in instruction.attributes:
            arguments = {
                name: computation[name].outputs[0] for name in instruction.operands if computation[name].outputs
            }
            on_chip = sum(x.num_bytes for x in (*arguments.values(), *instruction.outputs) if x.space)
            return max(_estimate(instruction, "bytes_accessed") - on_chip, 0)
        case "custom-call":
            return 0
        case "copy-start" | "slice-start":
            moved = instruction.outputs[0] if instruction.opcode == "copy-start" else instruction.outputs[1]
            source = sum(operand.space == 0 for operand in operands[:1])
            return moved.num_bytes * (source + (moved.space == 0))
        case "fusion":
            inner = module.computations[instruction.called[0]]
            read = (_read(module, inner, i) for i, operand in enumerate(operands) if operand.space == 0)
            written = zip(instruction.outputs, _written(module, inner), strict=True)
            return sum(read) + sum(size for output, size in written if output.space == 0)
        case "dynamic-slice" | "slice" | "gather":
            return sum(output.hbm_bytes + (operands[0].space == 0) * output.num_bytes for output in instruction.outputs)
        case "dynamic-update-slice":
            return operands[1].hbm_bytes + (operands[0].space == 0) * operands[1].num_bytes
    return sum(x.hbm_bytes for x in (*operands, *instruction.outputs))


def _read(module: Module, inner: Computation, index: int) -> int:
    """Returns the bytes of a fusion's operand that are read: of a sliced one the slices, of an updated one nothing."""
    parameter = next(x for x in inner.values() if x.opcode == "parameter" and x.attributes.startswith(f"{index})"))
    return min(parameter.outputs[0].num_bytes, _used(module, inner, parameter))


def _used(module: Module, inner: Computation, value: Instruction) -> int:
    """Returns the bytes that the users of an array read of it, counting each user's anew."""
    total = value.outputs[0].num_bytes if value.is_root else 0
    for user in inner.values():
        places = [i for i, operand in enumerate(user.operands) if operand == value.name]
        match user.opcode:
            case _ if not places:
                continue
            case "dynamic-slice" | "slice" | "gather":
                total += user.outputs[0].num_bytes
            case "dynamic-update-slice" | "scatter" if places == [0]:
                continue
            case "bitcast":
                total += _used(module, inner, user)
            case "fusion" if "output_to_operand_aliasing" in user.attributes:  # the same memory, in another tiling
                total += _used(module, inner, user)
            case "fusion":
                total += sum(_read(module, module.computations[user.called[0]], i) for i in places)
            case _:
                return value.outputs[0].num_bytes
    return total


def _written(module: Module, inner: Computation) -> list[int]:
    """Returns the bytes that a fusion writes to each of its outputs: of an updated array the update."""
    root = next(x for x in inner.values() if x.is_root)
    if root.opcode != "tuple" and len(root.outputs) > 1:
        return [output.num_bytes for output in root.outputs]
    return [
        _updated(module, inner, inner[name]) for name in (root.operands if root.opcode == "tuple" else (root.name,))
    ]


def _updated(module: Module, inner: Computation, value: Instruction) -> int:
    match value.opcode:
        case "bitcast":
            return _updated(module, inner, inner[value.operands[0]])
        case "dynamic-update-slice" | "scatter":
            return inner[value.operands[-1 if value.opcode == "scatter" else 1]].outputs[0].num_bytes
        case "fusion" if len(value.outputs) == 1:
            return _written(module, module.computations[value.called[0]])[0]
    return sum(output.num_bytes for output in value.outputs)


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of a chip, per second.

    Attributes:
      flops_per_second: Operations of floating-point matrix products.
      int8_per_second: Operations of int8 matrix products.
      bytes_per_second: Bytes of main memory.
      cycles_per_second: Clock.
    """

    flops_per_second: float
    int8_per_second: float
    bytes_per_second: float
    cycles_per_second: float

    def seconds(self, cost: Cost) -> float:
        """Returns the time of an instruction."""
        products = cost.flops / self.flops_per_second + cost.int8_ops / self.int8_per_second
        return max(products, cost.hbm_bytes / self.bytes_per_second)


def executed(module: Module, branch: int, rates: Rates) -> list[tuple[Computation, Instruction, int]]:
    """Returns the instructions that one run executes, each with its computation and how often.

    Args:
      module: The program.
      branch: Branch that conditionals of the program itself take, 1 if their condition is true. Conditionals within a
        branch take the cheaper one.
      rates: Rates of the chip.
    """
    return list(_executed(module, module.entry, 1, branch, rates))


def _executed(
    module: Module, name: str, times: int, branch: int | None, rates: Rates
) -> Iterator[tuple[Computation, Instruction, int]]:
    computation = module.computations[name]
    for instruction in computation.values():
        yield computation, instruction, times
        if instruction.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
            for called in instruction.called:
                yield from _executed(module, called, times * int(trips[1]) if trips else times, branch, rates)
        elif instruction.opcode == "conditional":
            runs = [list(_executed(module, name, times, None, rates)) for name in instruction.branches]
            yield from min(runs, key=lambda run: _seconds(module, run, rates)) if branch is None else runs[branch]


def _seconds(module: Module, run: list[tuple[Computation, Instruction, int]], rates: Rates) -> float:
    return sum(times * rates.seconds(cost_of(module, where, instruction)) for where, instruction, times in run)
