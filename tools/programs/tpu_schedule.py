"""Counts the cycles of a compiled TPU program from the schedules that the compiler writes down.

With `LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true"` libtpu writes a `*-final_bundles.txt` per
function: a line per VLIW bundle, with the instructions that are issued in one cycle. A fusion or a kernel is a function
of its own, shared by all HLO instructions that compile to the same code; what is too small for one lies between the
calls, in the top-level function. `*-hlo-details.txt` says which function each HLO instruction calls.

Loops and `pl.when` are followed by interpreting the scalar instructions, which hold grid indices and trip counts. A
value from memory is unknown; a branch that depends on one is not taken, so its body counts, and a loop whose end
depends on one counts once. A function whose end is never reached has no count; its bundles are a lower bound. Waits for
memory are not in a schedule, so every count is a lower bound.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

DELAY: Final = 4
"""Number of bundles after a branch that are executed before it takes effect."""

TABLE_WIDTH: Final = 128
"""Words in a row of a table in scalar memory."""

MAX_SCALAR_BUNDLES: Final = 5_000_000
"""Number of interpreted bundles after which a function has no known end."""

type Value = int | bool | None
"""Value of a scalar or predicate register; None if unknown."""

_BUNDLE: Final = re.compile(r"^ *0?x?([0-9a-f]+) +(?:[A-Z]{2})?:[ >]*\{(.*)\}(.*)$")
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_REGION: Final = re.compile(r"Start(?:/End empty)? region (\d+)")
_ASSIGNMENT: Final = re.compile(r"%[a-z]*\d+(?:_([sp]\d+))? = ([\w.]+)(.*)")
_TRAILING_PREDICATE: Final = re.compile(r"^(.*\]) (\(!?%\w+\))\s*$")
"""Predicate of a load, which stands behind its address."""

_PREDICATE: Final = re.compile(r"^ *\((!?)%[a-z]*\d+_(p\d+)(?:, [^)]*)?\),?")
_REGISTER: Final = re.compile(r"(!?)%[a-z]*\d+_([sp]\d+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """A scalar instruction or a branch.

    Attributes:
      opcode: Name of the operation.
      target: Register that it writes, or None.
      predicate: Register that decides whether it is executed, and whether it is negated; None if it always is.
      operands: Registers (with a "!" before a negated predicate), numbers, or an address in brackets.
      region: Number of the region that a branch goes to, or None.
    """

    opcode: str
    target: str | None
    predicate: tuple[str, bool] | None
    operands: tuple[str | int, ...]
    region: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Final schedule of one function.

    Attributes:
      size: Number of bundles.
      scalar: Scalar instructions and branches, by the index of their bundle.
      regions: Index of the bundle in which each region begins. A region without bundles is the end of the function.
    """

    size: int
    scalar: Mapping[int, tuple[Instruction, ...]]
    regions: Mapping[int, int]


def parse_schedule(text: str) -> Schedule:
    """Returns the schedule in the text of a `*-final_bundles.txt`."""
    scalar: dict[int, tuple[Instruction, ...]] = {}
    regions: dict[int, int] = {}
    size = 0
    for line in _COMMENT.sub(lambda comment: comment[0].replace("\n", " "), text).splitlines():
        found = _BUNDLE.match(line)
        if found is None:
            continue
        for region in _REGION.findall(found[3]):
            regions.setdefault(int(region), size)
        instructions = tuple(_instructions(_COMMENT.sub("", found[2])))
        if instructions:
            scalar[size] = instructions
        size += 1
    return Schedule(size, scalar, regions)


def _instructions(bundle: str) -> Iterator[Instruction]:
    for slot in bundle.split(";;"):
        found = _ASSIGNMENT.match(slot.strip())
        if found is None or (found[1] is None and found[2] not in ("sst", "sbr.rel")) or found[2] == "sphi":
            continue  # a phi's registers are one and the same
        rest = _TRAILING_PREDICATE.sub(r"\2, \1", found[3])
        negated = _PREDICATE.match(rest)
        predicate = None if negated is None else (negated[2], negated[1] == "!")
        rest = rest if negated is None else rest[negated.end() :]
        region = re.search(r"target = \$region(\d+)", rest)
        yield Instruction(found[2], found[1], predicate, _operands(rest), region and int(region[1]))


def _operands(rest: str) -> tuple[str | int, ...]:
    operands: list[str | int] = []
    for part in re.findall(r"\[smem:\[.*?\](?: [^\]]*)?\]|!?%\w+|(?<![\w#$])-?\d+(?!\w)", rest):
        register = _REGISTER.fullmatch(part)
        if register is not None:
            operands.append(register[1] + register[2])
        else:
            operands.append(part if part[0] in "[%!" else int(part))
    return tuple(operands)


def _signed(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


_ARITHMETIC: Final[Mapping[str, Callable[[int, int], int]]] = {
    "sadd": operator.add,
    "ssub": operator.sub,
    "smul": operator.mul,
    "sand": operator.and_,
    "sor": operator.or_,
    "sxor": operator.xor,
    "sshll": lambda a, b: a << (b % 32),
    "sshrl": lambda a, b: (a % 2**32) >> (b % 32),
    "sshra": lambda a, b: a >> (b % 32),
    "smin": min,
    "smax": max,
}
_COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}


def count_cycles(schedule: Schedule, table: Sequence[int] = ()) -> int | None:
    """Returns the number of executed bundles, each of which takes at least one cycle; None without a known end.

    Args:
      schedule: Schedule of a function.
      table: Values of every row of the function's table in scalar memory, from the first column on.
    """
    machine = _Machine(table, {}, {})
    events = sorted(schedule.scalar)
    following = {index: events[i + 1] if i + 1 < len(events) else schedule.size for i, index in enumerate(events)}
    cycles, at, interpreted = 0, 0, 0
    jump: tuple[int, int] | None = None  # last bundle before the jump takes effect, and where it goes
    while at < schedule.size:
        region = machine.execute(schedule.scalar.get(at, ()))
        if region is not None and jump is None:
            jump = (min(at + DELAY, schedule.size - 1), schedule.regions.get(region, schedule.size - 1))
        ahead = following.get(at) or next((e for e in events if e > at), schedule.size)
        if jump is not None and ahead > jump[0]:
            cycles += jump[0] + 1 - at
            at, jump = jump[1], None
        else:
            cycles += ahead - at
            at = ahead
        interpreted += 1
        if interpreted > MAX_SCALAR_BUNDLES:
            return None
    return cycles


@dataclass(frozen=True, slots=True)
class _Machine:
    """Scalar registers, and scalar memory by its address. What is missing is unknown.

    A condition that is unknown holds: what depends on it is executed, and a branch around that is not taken.
    """

    table: Sequence[int]
    registers: dict[str, Value]
    memory: dict[str, Value]

    def execute(self, bundle: tuple[Instruction, ...]) -> int | None:
        """Executes the instructions of a bundle at once; returns the region that it branches to, or None."""
        region, writes = None, []
        for instruction in bundle:
            runs = self._runs(instruction)
            if instruction.opcode == "sbr.rel":
                region = instruction.region if runs else region
            elif runs is not False:
                writes.append((self._place(instruction), self._result(instruction)))
            if runs is None and instruction.opcode == "sbr.rel" and instruction.predicate is not None:
                writes.append((instruction.predicate[0], instruction.predicate[1]))
        for place, value in writes:
            if place is not None:
                (self.memory if place.startswith("[") else self.registers)[place] = value
        return region

    def _place(self, instruction: Instruction) -> str | None:
        """Returns the register that an instruction writes, or the address, if that is known."""
        if instruction.target is not None:
            return instruction.target
        return self._address(str(instruction.operands[0]))

    def _address(self, text: str) -> str | None:
        """Returns an address with the values of its registers; None if they are unknown."""
        values = [self.registers.get(name) for name in re.findall(r"%\w+_(s\d+)", text)]
        if None in values:
            return None
        known = iter(values)
        return re.sub(r"%\w+_s\d+", lambda _: str(next(known)), text)

    def _runs(self, instruction: Instruction) -> bool | None:
        """Returns whether an instruction is executed; None if its predicate is unknown."""
        if instruction.predicate is None:
            return True
        register, is_negated = instruction.predicate
        value = self.registers.get(register)
        return None if value is None else bool(value) != is_negated

    def _result(self, instruction: Instruction) -> Value:
        values = [self._value(operand) for operand in instruction.operands]
        name, *kind = instruction.opcode.split(".")
        match name:
            case "sst":
                return values[1]
            case "smov" | "pmov" | "sld":
                return values[-1] if values else None
            case "pneg" if values:
                return None if values[0] is None else not values[0]
            case "pnand" | "pand" | "por" | "pnor":
                return _logic(name, values)
            case "scalar_select" if len(values) == 3:
                chosen, if_true, if_false = values
                return None if chosen is None else if_true if chosen else if_false
            case "scmp" if len(values) == 2:
                return _compare(kind, values[0], values[1])
        first, second = (*values, None, None)[:2]
        if name not in _ARITHMETIC or first is None or second is None:
            return None
        return _signed(_ARITHMETIC[name](int(first), int(second)))

    def _value(self, operand: str | int) -> Value:
        if isinstance(operand, int):
            return _signed(operand)
        if operand.startswith("["):
            return self._load(operand)
        value = self.registers.get(operand.removeprefix("!"))
        return not value if operand.startswith("!") and value is not None else value

    def _load(self, operand: str) -> Value:
        address = self._address(operand)
        if address is None or address in self.memory:
            return None if address is None else self.memory[address]
        found = re.fullmatch(r"\[smem:\[#allocation\d+(?: \+ (?:\$(0x[0-9a-f]+)|(\d+)))?\]\]", address)
        column = TABLE_WIDTH if found is None else int(found[1] or found[2] or "0", 0) % TABLE_WIDTH
        return self.table[column] if column < len(self.table) else None


def _logic(name: str, values: list[Value]) -> Value:
    """Returns the result of a logic operation, which one operand alone may decide."""
    decisive = name in ("por", "pnor")
    known = [bool(value) for value in values if value is not None]
    if decisive in known:
        result = decisive
    elif len(known) == len(values):
        result = not decisive
    else:
        return None
    return not result if name in ("pnand", "pnor") else result


def _compare(kind: list[str], a: Value, b: Value) -> Value:
    if a is None or b is None:
        return None
    if "u32" in kind:
        a, b = a % 2**32, b % 2**32
    return _COMPARISONS[kind[0]](int(a), int(b))


class Dump:
    """The schedules of one compiled program.

    Args:
      folder: Folder that the compiler dumped one program into.
    """

    def __init__(self, folder: Path) -> None:
        self._texts = {
            path.name.split("-", 1)[1].rsplit("-", 2)[0]: path
            for path in sorted(folder.glob("*-final_bundles.txt"))
            if "schedule-analysis" not in path.name
        }
        self._cycles: dict[tuple[str, tuple[int, ...]], int | None] = {}
        self._details = "".join(path.read_text() for path in sorted(folder.glob("*-hlo-details.txt")))

    def cycles(self, instruction: str, table: Sequence[int] = ()) -> int:
        """Returns the cycles of the function that an HLO instruction calls; 0 if it is part of the top level.

        Args:
          instruction: Name of the instruction.
          table: See `count_cycles`. Without a known end, each bundle of the function counts once.
        """
        if instruction not in self._names:
            return 0
        counted = self._counted(self._names[instruction], tuple(table))
        return self._schedule(self._names[instruction]).size if counted is None else counted

    def has_schedule(self, instruction: str) -> bool:
        """Returns whether the schedule of the function that an HLO instruction calls was written down."""
        return instruction in self._names

    def has_end(self, instruction: str, table: Sequence[int] = ()) -> bool:
        """Returns whether the end of an HLO instruction's function is known; see `cycles`."""
        return instruction not in self._names or self._counted(self._names[instruction], tuple(table)) is not None

    def _counted(self, name: str, table: tuple[int, ...]) -> int | None:
        if (name, table) not in self._cycles:
            self._cycles[name, table] = count_cycles(self._schedule(name), table)
        return self._cycles[name, table]

    @cached_property
    def top_level(self) -> int:
        """Cycles between the calls of the program's functions, without loops, which copy what is not donated."""
        inlined = set(self._texts) - {"TLP"} - set(self._overlays)
        return max(0, self._schedule("TLP").size - sum(self._schedule(name).size for name in inlined))

    @cached_property
    def _overlays(self) -> Mapping[str, str]:
        """Number of the function that an HLO instruction calls."""
        return dict(re.findall(r"operation: %(\S+) = .*\n.*hlo-overlay: (\S+)", self._details))

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Name of the dumped function by the HLO instructions that call it, or that it has been inlined for."""
        dumped = {overlay: name for name, overlay in self._overlays.items() if name in self._texts}
        return {name: name for name in self._texts} | {name: dumped[it] for name, it in self._overlays.items()}

    def _schedule(self, name: str) -> Schedule:
        return parse_schedule(self._texts[name].read_text())
