"""Compilation of device programs ahead of the first request."""

import itertools
import logging
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from typing import Any, NamedTuple

import jax

from .leaves import Leaves
from .lowering import idle_bytes, lower
from .program_memory import (
    KernelRefusedError,
    OutOfMemoryError,
    ProgramMemory,
    demands,
    parse_overflow,
    parse_refused_kernel,
    program_memory,
)
from .served import Program, Served
from .trace_cache import TraceCache

type CompiledProgram = Callable[..., tuple[Leaves, Any]]
"""A compiled program; takes and returns what `lowering.lower` says."""

_logger = logging.getLogger(__name__)


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
        return {label: self._memory(outcome) for label, outcome in self.outcomes.items()}

    def _memory(self, outcome: Any) -> ProgramMemory | OutOfMemoryError:
        if isinstance(outcome, OutOfMemoryError):
            return outcome
        return program_memory(outcome, idle_bytes(outcome, self.served))

    def excess_bytes(self, limit_bytes: int) -> int:
        """Returns the bytes that the most demanding program needs beyond a device's memory; 0 if all programs fit."""
        missing = (demand for demand in demands(self.memory, limit_bytes).values() if not demand.fits)
        return max((max(demand.hbm_bytes - limit_bytes, 1) for demand in missing), default=0)


def compile_served(
    served: Served,
    executor: Executor,
    report: Callable[[int, int], None],
    check: Callable[[], None] = lambda: None,
    traces: TraceCache | None = None,
) -> CompiledPrograms:
    """Compiles the programs that a served model begins with, with the options of its platform.

    Args:
      executor: Threads that compile.
      report: Called with the number of compiled programs and of all.
      check: Called after each program; may raise what ends the start.
      traces: Traced programs of earlier starts, if they are kept.

    Raises:
      KernelRefusedError: Kernels do not compile for the devices; it names all that the programs were refused for.
    """
    start = time.monotonic()
    compiled = compile_all(
        lowerings(served.programs.at_start, served, traces), partial(compile_beside_all, served), executor, report
    )
    traced = time.monotonic()
    for done in as_completed(compiled.values()):
        if not isinstance(done.exception(), OutOfMemoryError | KernelRefusedError):
            done.result()
        check()
    _logger.debug("programs: traced in %.2f s, compiled %.2f s later", traced - start, time.monotonic() - traced)
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


def compile_all(
    lowerings: Mapping[str, Callable[[], Any]],
    compile_one: Callable[[Any], CompiledProgram],
    executor: Executor,
    report: Callable[[int, int], None],
) -> dict[str, Future[CompiledProgram]]:
    """Traces the programs one by one; earlier ones are compiled at the same time.

    Args:
      lowerings: Function that traces each program, by label; see `lowering.lower`.
      compile_one: Function that compiles a traced program.
      executor: Threads that compile. Shutting it down cancels the remaining compilations.
      report: Called with the number of compiled programs and of all.
    """
    num_done = itertools.count(1)

    def compile_program(lowered: Any) -> CompiledProgram:
        compiled = compile_one(lowered)
        report(next(num_done), len(lowerings))
        return compiled

    return {label: executor.submit(compile_program, trace()) for label, trace in lowerings.items()}


def lowerings(
    programs: Iterable[Program[Any]], served: Served, traces: TraceCache | None = None
) -> dict[str, Callable[[], Any]]:
    """Returns a function per label that traces the program; see `lowering.lower`."""
    return {program.label: partial(lower, program, served, traces) for program in programs}
