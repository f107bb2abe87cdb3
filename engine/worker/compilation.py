"""Compilation of device programs ahead of the first request, and the count of compilations after that."""

import itertools
import logging
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, as_completed
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.monitoring
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ..core.config import MAX_PREFILL_ROWS
from ..model.collectives import REPLICATED, SLOTS
from ..model.sharding_rules import state_partition_specs
from .fitting import demands
from .program_memory import (
    KernelRefusedError,
    OutOfMemoryError,
    ProgramMemory,
    parse_overflow,
    parse_refused_kernel,
    program_memory,
)
from .programs import ArrayName, ModelShapes, Program
from .served import ServedPrograms
from .steps import StatePool
from .trace_cache import TraceCache

type CompiledProgram = Callable[..., tuple[Any, ...]]
"""A compiled program; takes and returns arrays as its `Program` says."""

_logger = logging.getLogger(__name__)

_COMPILE_EVENT: Final = "/jax/core/compile/backend_compile_duration"


def lower(program: Program[Any], model: ModelShapes, traces: TraceCache | None = None) -> Any:
    """Traces a program, ready to be compiled.

    Args:
      program: Program to trace.
      model: Model of the program.
      traces: Traced programs of earlier starts, if they are kept; only on a single device.
    """
    donated = tuple(i for i, name in enumerate(program.reads) if name == "pool" and name in program.replaces)
    shapes = (*(_shape(name, program, model) for name in program.reads), *program.inputs)
    if model.mesh is None:
        step = _as_tuple(program)
        if traces is not None:
            step = traces.traced(program.label, step, shapes, donated)
        return jax.jit(step, donate_argnums=donated).lower(*_on_device(model.device, shapes))
    takes = (*(_spec(name, model) for name in program.reads), *(REPLICATED for _ in program.inputs))
    gives = (*(_spec(name, model) for name in program.replaces), *([REPLICATED] if program.has_result else []))
    shards = jax.shard_map(_as_tuple(program), mesh=model.mesh, in_specs=takes, out_specs=gives, check_vma=False)
    placed = tuple(shard_shapes(model.mesh, spec, tree) for spec, tree in zip(takes, shapes, strict=True))
    return jax.jit(shards, donate_argnums=donated).lower(*placed)


def _on_device(device: jax.Device | None, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns shapes of arrays on a device; on JAX's default device for None."""
    if device is None:
        return shapes
    place = SingleDeviceSharding(device)
    placed: tuple[Any, ...] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    return placed


def _as_tuple(program: Program[Any]) -> Callable[..., tuple[Any, ...]]:
    """Returns the step with a tuple of its outputs, even of a single one."""
    if len(program.replaces) + program.has_result > 1:
        return program.step

    def step(*arguments: Any) -> tuple[Any, ...]:
        return (program.step(*arguments),)

    return step


def shard_shapes(mesh: Mesh, spec: Any, tree: Any) -> Any:
    """Returns shapes of arrays that are sharded over a mesh.

    Args:
      mesh: Devices.
      spec: Partition specs, as a prefix of the tree.
      tree: Arrays or their shapes.
    """
    return jax.tree.map(
        lambda spec, part: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)), part
        ),
        spec,
        tree,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def pool_partition_specs(pool: StatePool) -> StatePool:
    """Returns the partition specs of the state pool."""
    return StatePool(pool.states.map(state_partition_specs), SLOTS)  # type: ignore[arg-type]


def _spec(name: ArrayName, model: ModelShapes) -> Any:
    if name == "params":
        return model.specs
    return {"pool": pool_partition_specs(model.pool), "hidden": SLOTS}.get(name, REPLICATED)


def _shape(name: ArrayName, program: Program[Any], model: ModelShapes) -> Any:
    shapes = {"params": model.params, "pool": model.pool}
    if name in shapes:
        return shapes[name]
    width, data = model.config.width, model.shards.data
    shape = (data * MAX_PREFILL_ROWS, width) if name == "last" else (*jax.tree.leaves(program.inputs)[0].shape, width)
    return jax.ShapeDtypeStruct(shape, model.dtype)


def compile_lowered(lowered: Any, options: Mapping[str, str]) -> Any:
    """Compiles a traced program.

    Args:
      lowered: Program from `lower`.
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
      served: The programs.
      outcomes: Compiled program by label, or why the compiler refused it.
    """

    served: ServedPrograms
    outcomes: Mapping[str, Any]

    @property
    def memory(self) -> dict[str, ProgramMemory | OutOfMemoryError]:
        """Memory of each program by label, or why the compiler refused it."""
        return {label: program_memory(outcome) for label, outcome in self.outcomes.items()}

    def excess_bytes(self, limit_bytes: int) -> int:
        """Returns the bytes that the most demanding program needs beyond a device's memory; 0 if all programs fit."""
        missing = (demand for demand in demands(self.memory, limit_bytes).values() if not demand.fits)
        return max((max(demand.hbm_bytes - limit_bytes, 1) for demand in missing), default=0)


def compile_served(
    served: ServedPrograms,
    executor: Executor,
    report: Callable[[int, int], None],
    check: Callable[[], None] = lambda: None,
    traces: TraceCache | None = None,
) -> CompiledPrograms:
    """Compiles all programs of a served model with the options of its platform.

    Args:
      served: The programs.
      executor: Threads that compile.
      report: Called with the number of compiled programs and of all.
      check: Called after each program; may raise what ends the start.
      traces: Traced programs of earlier starts, if they are kept.

    Raises:
      KernelRefusedError: Kernels do not compile for the devices; it names all that the programs were refused for.
    """
    options = dict(served.layout.platform.compile_options)
    start = time.monotonic()
    compiled = compile_all(lowerings(served.programs, served.model, traces), options, executor, report)
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


def compile_all(
    lowerings: Mapping[str, Callable[[], Any]],
    options: Mapping[str, str],
    executor: Executor,
    report: Callable[[int, int], None],
) -> dict[str, Future[CompiledProgram]]:
    """Traces one program after the other, while those before it are compiled.

    Args:
      lowerings: Function that traces each program, by label; see `lower`.
      options: Options of XLA's compiler.
      executor: Threads that compile. Shutting it down cancels what is left.
      report: Called with the number of compiled programs and of all.
    """
    num_done = itertools.count(1)

    def compile_program(lowered: Any) -> CompiledProgram:
        compiled: CompiledProgram = compile_lowered(lowered, options)
        report(next(num_done), len(lowerings))
        return compiled

    return {label: executor.submit(compile_program, trace()) for label, trace in lowerings.items()}


def lowerings(
    programs: Iterable[Program[Any]], model: ModelShapes, traces: TraceCache | None = None
) -> dict[str, Callable[[], Any]]:
    """Returns a function per label that traces the program; see `lower`."""
    return {program.label: partial(lower, program, model, traces) for program in programs}


class CompileCounter:
    """Counts XLA compilations of this process from `start` to `stop`.

    Attributes:
      count: Number of compilations so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> None:
        """Starts counting."""
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def stop(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1
