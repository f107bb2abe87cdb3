"""Device memory of compiled programs, as the compiler counts it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..types.errors import ConfigError

_OVERFLOW: Final = (
    re.compile(r"Used (?P<used>[\d.]+[KMGT]?) of (?P<limit>[\d.]+[KMGT]?) hbm"),
    re.compile(r"\((?P<used>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<limit>[\d.]+[KMGT]?)\)"),
)
"""How the TPU compiler says that a program needs more memory than the chip has."""

_KERNEL: Final = re.compile(r"memory space vmem|Mosaic failed|Shared memory size limit exceeded")
"""How the compilers for TPUs and GPUs say that a kernel is at fault."""

_NAME: Final = re.compile(r'op_name="[^"]*?(\w+)/pallas_call"')
"""How the TPU compiler names the kernel that its list of on-chip memory begins with."""

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemoryError(Exception):
    """The compiler refuses a program that needs more memory than a device has.

    Attributes:
      used_bytes: Bytes that the program needs, by the compiler's count.
    """

    def __init__(self, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a program needs {used_bytes:,} bytes of device memory, and there are {limit_bytes:,}")
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes


class KernelRefusedError(ConfigError):
    """The compiler refuses Pallas kernels on this chip, such as one that needs more on-chip memory than there is.

    Attributes:
      reasons: The compiler's first line by the name of a kernel; "" is one that the compiler does not name.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        lines = (f"{f'kernel {name}' if name else 'a kernel'}: {reasons[name]}" for name in sorted(reasons))
        super().__init__(f"kernels do not compile for this chip: {'; '.join(lines)}")
        self.reasons = dict(reasons)


@dataclass(frozen=True, slots=True)
class ProgramMemory:
    """Bytes of a compiled program on each device.

    Attributes:
      argument_bytes: Arguments that the program reads.
      output_bytes: All outputs, including those that reuse the memory of a donated argument.
      alias_bytes: Outputs that reuse the memory of a donated argument.
      temp_bytes: Temporaries of all memories, whether or not they exist at the same time.
      code_bytes: Machine code, which stays on the device as long as the program can run.
      allocated_bytes: Allocations in the main memory, code excluded: arguments, new outputs, and temporaries that share
        memory where they don't exist at the same time. 0 if the compiler doesn't count them.
      idle_bytes: Weights and slots on the device that the program does not take.
    """

    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temp_bytes: int
    code_bytes: int
    allocated_bytes: int = 0
    idle_bytes: int = 0

    @property
    def hbm_bytes(self) -> int:
        """Main memory that the program takes while it runs."""
        allocated = self.allocated_bytes or self.argument_bytes + self.new_bytes + self.temp_bytes
        return allocated + self.code_bytes

    @property
    def new_bytes(self) -> int:
        """Outputs that need new memory."""
        return self.output_bytes - self.alias_bytes


def program_memory(compiled: Any, idle_bytes: int = 0) -> ProgramMemory | OutOfMemoryError:
    """Returns the memory of a compiled program, or the error of one that was refused.

    Args:
      idle_bytes: See `ProgramMemory`.
    """
    if isinstance(compiled, OutOfMemoryError):
        return compiled
    stats = compiled.memory_analysis()
    return ProgramMemory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        getattr(stats, "total_allocation_bytes", 0),
        idle_bytes,
    )


def parse_overflow(message: str) -> OutOfMemoryError | None:
    """Returns the bytes that a refused compilation names; None if it was refused for another reason."""
    for pattern in _OVERFLOW:
        if (found := pattern.search(message)) is not None:
            return OutOfMemoryError(_bytes(found["used"]), _bytes(found["limit"]))
    return None


def parse_refused_kernel(message: str) -> KernelRefusedError | None:
    """Returns the reason why a kernel does not compile; None if a compilation failed for another reason."""
    if _KERNEL.search(message) is None:
        return None
    named = _NAME.search(message)
    return KernelRefusedError({named[1] if named else "": message.splitlines()[0]})


def _bytes(shown: str) -> int:
    """Returns the bytes of a number in the compiler's notation: "16.45G"."""
    unit = shown[-1] if shown[-1] in _UNITS else ""
    return int(float(shown.removesuffix(unit)) * _UNITS[unit])


class MemoryDemand(NamedTuple):
    """Memory of a device while one program runs.

    Attributes:
      hbm_bytes: Memory of the program and of all other data on the device.
      fits: Whether the compiler accepts the program and the device has that much.
    """

    hbm_bytes: int
    fits: bool


def demands(programs: Mapping[str, ProgramMemory | OutOfMemoryError], limit_bytes: int) -> dict[str, MemoryDemand]:
    """Returns the memory of a device while each program runs, by label.

    A device also holds the weights and slots that the program does not take, the code of the other programs, and the
    outputs of two earlier steps: the step whose results the host reads, and the last prefill.

    Args:
      programs: Memory of all programs, or why the compiler refused them.
      limit_bytes: Memory of the device.
    """
    compiled = [memory for memory in programs.values() if isinstance(memory, ProgramMemory)]
    arguments = max((memory.argument_bytes + memory.idle_bytes for memory in compiled), default=0)
    outputs = 2 * max((memory.new_bytes for memory in compiled), default=0)
    code = sum(memory.code_bytes for memory in compiled)

    def demand(memory: ProgramMemory | OutOfMemoryError) -> MemoryDemand:
        if isinstance(memory, OutOfMemoryError):
            return MemoryDemand(memory.used_bytes + outputs + code, fits=False)
        own = memory.hbm_bytes - memory.argument_bytes - memory.code_bytes
        total = arguments + outputs + code + own
        return MemoryDemand(total, total <= limit_bytes)

    return {label: demand(memory) for label, memory in programs.items()}
