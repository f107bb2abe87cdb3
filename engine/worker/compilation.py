"""Compilation of device programs ahead of the first request, and their memory.

Compilations while the engine runs are bugs, and are counted.
"""

import itertools
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import jax.monitoring

from ..types.errors import ConfigError
from .earlier_starts import TraceCache
from .lowering import Leaves, idle_bytes, lower
from .served import Served

type CompiledProgram = Callable[..., tuple[Leaves, Any]]
"""A compiled program; takes and returns what `lowering.lower` says."""

_COMPILE_EVENT: Final = "/jax/core/compile/backend_compile_duration"

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
      output_bytes: All outputs, including outputs that reuse the memory of a donated argument.
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


class MemoryDemand(NamedTuple):
    """Memory of a device while one program runs.

    Attributes:
      hbm_bytes: Memory of the program and of all other data on the device.
      fits: Whether the compiler accepts the program and the device has that much.
    """

    hbm_bytes: int
    fits: bool


class CompiledPrograms(NamedTuple):
    """Served programs and what became of their compilation.

    Attributes:
      outcomes: Compiled program by label, or why the compiler refused it.
    """

    served: Served
    outcomes: Mapping[str, Any]

    @property
    def memory(self) -> dict[str, ProgramMemory | OutOfMemoryError]:
        """Memory of each program by label, or why the compiler refused it."""
        return {
            label: outcome
            if isinstance(outcome, OutOfMemoryError)
            else program_memory(outcome, idle_bytes(outcome, self.served))
            for label, outcome in self.outcomes.items()
        }

    def excess_bytes(self, limit_bytes: int) -> int:
        """Returns the bytes that the most demanding program needs beyond a device's memory; 0 if all programs fit."""
        missing = (demand for demand in demands(self.memory, limit_bytes).values() if not demand.fits)
        return max((max(demand.hbm_bytes - limit_bytes, 1) for demand in missing), default=0)


def compile_lowered(lowered: Any, options: Mapping[str, str]) -> Any:
    """Compiles a traced program.

    Args:
      lowered: Program from `lowering.lower`.
      options: Options of XLA's compiler.

    Raises:
      OutOfMemoryError: The program needs more memory than a device has.
      KernelRefusedError: A Pallas kernel of the program does not compile for the device.
    """
    try:
        return lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if (reason := parse_overflow(str(error)) or parse_refused_kernel(str(error))) is None:
            raise
        raise reason from None


def compile_served(
    served: Served,
    executor: Executor,
    report: Callable[[int, int], None],
    check: Callable[[], None] = lambda: None,
    traces: TraceCache | None = None,
) -> CompiledPrograms:
    """Compiles the programs of a served model, with the options of its platform.

    Args:
      executor: Threads that compile. Shutting it down cancels the remaining compilations.
      report: Called with the number of compiled programs and of all.
      check: Called after each program; may raise what ends the start.
      traces: Traced programs of earlier starts, if they are kept.

    Raises:
      KernelRefusedError: Kernels do not compile for the devices; it names all that the programs were refused for.
    """
    programs, num_done = served.programs.compiled, itertools.count(1)

    def compile_traced(lowered: Any) -> CompiledProgram:
        compiled = compile_beside_all(served, lowered)
        report(next(num_done), len(programs))
        return compiled

    compiled: dict[str, Future[CompiledProgram]] = {}
    for program in programs:  # traced one by one; earlier ones are compiled at the same time
        compiled[program.label] = executor.submit(compile_traced, lower(program, served, traces))
    for done in as_completed(compiled.values()):
        if not isinstance(done.exception(), OutOfMemoryError | KernelRefusedError):
            done.result()
        check()
    outcomes = {label: each.exception() or each.result() for label, each in compiled.items()}
    refused = [outcome.reasons for outcome in outcomes.values() if isinstance(outcome, KernelRefusedError)]
    if refused:
        raise KernelRefusedError(dict(ChainMap(*refused)))
    return CompiledPrograms(served, outcomes)


def compile_beside_all(served: Served, lowered: Any) -> CompiledProgram:
    """Compiles a program; one that is refused needs memory for the parameters and slots that it does not take too."""
    try:
        compiled: CompiledProgram = compile_lowered(lowered, dict(served.devices.platform.compile_options))
    except OutOfMemoryError as error:
        used_bytes = error.used_bytes + idle_bytes(lowered, served)
        raise OutOfMemoryError(used_bytes, error.limit_bytes) from None
    return compiled


class CompileCounter:
    """Counts XLA compilations of this process until `stop`.

    Attributes:
      count: Number of compilations so far.
    """

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def stop(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.count += event == _COMPILE_EVENT


def program_memory(compiled: Any, idle_bytes: int = 0) -> ProgramMemory:
    """Returns the memory of a compiled program.

    Args:
      idle_bytes: See `ProgramMemory`.
    """
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
