"""Verification of a plan: the programs that a start would compile on TPUs, compiled without one.

Slots are chosen as at a start: from the estimate, with fewer of them while a program does not fit.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from .checkpoint.source import ModelSource
from .core.config import EngineConfig
from .core.mesh import ONE_DEVICE
from .worker.aot import ahead_of_time, hbm_limit, open_chips
from .worker.compilation import CompiledPrograms, compile_served
from .worker.fitting import Attempt, Demand, demands, estimated_slots, fit_slots, memory_of_served
from .worker.loading import open_weights
from .worker.program_memory import OutOfMemoryError
from .worker.programs import Program
from .worker.served import served_programs


@dataclass(frozen=True, slots=True)
class VerifiedProgram:
    """A served program, as the compiler sees it.

    Attributes:
      name: Label of the program.
      rows: Number of rows that it takes from the host: slots, prompts or chunks.
      hbm_bytes: Memory of a chip while the program runs, with everything that stays there beside it.
      temp_bytes: Temporaries; None if the compiler refuses the program.
      custom_calls: Number of calls of Pallas kernels; None if the compiler refuses the program.
      fits: Whether the chip has that much memory.
      optimal_seconds: The compiler's estimate of the time of one run; None if it has none for this program.
    """

    name: str
    rows: int
    hbm_bytes: int
    temp_bytes: int | None
    custom_calls: int | None
    fits: bool
    optimal_seconds: float | None


@dataclass(frozen=True, slots=True)
class Verification:
    """Programs of a served model on one kind of chip.

    Attributes:
      slots: Number of requests that run at a time.
      estimated_slots: Number of slots by the estimate; None if the settings say how many.
      hbm_limit_bytes: Memory of a chip for programs and their arrays, by the compiler.
      programs: All programs.
    """

    slots: int
    estimated_slots: int | None
    hbm_limit_bytes: int
    programs: tuple[VerifiedProgram, ...]

    @property
    def fits(self) -> bool:
        """Whether all programs fit."""
        return all(program.fits for program in self.programs)


def verify_plan(
    source: ModelSource, settings: EngineConfig, chip: str, report: Callable[[int, int, int], None]
) -> Verification:
    """Compiles all programs of a served model for a chip; takes minutes, and no chip.

    Call it before anything else asks JAX for devices.

    Args:
      source: The model.
      settings: Settings of the engine. Without `slots`, as many are taken as a start would take.
      chip: One of `roost.engine.worker.aot.CHIPS`.
      report: Called with the number of slots, of compiled programs, and of all programs.

    Raises:
      ConfigError: The chip is unknown, the TPU compiler is missing, or fewer than 8 slots fit.
      CheckpointError: The weights do not fit the model.
    """
    source = source.with_kv_dtype(settings.kv_dtype)
    devices = open_chips(chip, settings.shards or ONE_DEVICE)
    limit = hbm_limit(devices)
    with (
        open_weights(source, settings, devices.shards, devices.platform, devices.mesh) as weights,
        ThreadPoolExecutor(os.cpu_count(), "compile") as executor,
    ):

        def compile_for(slots: int) -> CompiledPrograms:
            served = served_programs(source.config, settings, weights, devices, slots)
            return compile_served(served, executor, partial(report, slots))

        if settings.slots is not None:
            return _verification(compile_for(settings.slots), limit, None)
        memory = memory_of_served(source.config, settings, weights, devices, limit)

        def attempt(slots: int) -> Attempt[CompiledPrograms]:
            compiled = compile_for(slots)
            return Attempt(compiled, compiled.excess_bytes(limit))

        first = estimated_slots(memory, devices.shards)
        _, compiled = fit_slots(first, attempt, memory.row_bytes, devices.shards, int)
        return _verification(compiled, limit, first)


def _verification(compiled: CompiledPrograms, limit_bytes: int, estimated: int | None) -> Verification:
    needs = demands(compiled.memory, limit_bytes)
    programs = (_verified(each, compiled.outcomes[each.label], needs[each.label]) for each in compiled.served.programs)
    return Verification(compiled.served.layout.slots, estimated, limit_bytes, tuple(programs))


def _verified(program: Program[Any], outcome: Any, need: Demand) -> VerifiedProgram:
    rows = int(jax.tree.leaves(program.inputs)[0].shape[0])
    if isinstance(outcome, OutOfMemoryError):
        return VerifiedProgram(program.label, rows, need.hbm_bytes, None, None, need.fits, None)
    facts = ahead_of_time(outcome)
    seconds = facts.cost.get("optimal_seconds", 0.0)
    return VerifiedProgram(
        program.label,
        rows,
        need.hbm_bytes,
        facts.memory.temp_bytes,
        facts.custom_calls,
        need.fits,
        seconds if seconds > 0 else None,
    )
