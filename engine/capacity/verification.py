"""Verification of a plan: the programs that a start would compile on TPUs or a GPU, compiled without one.

Slots are chosen as at a start: from the estimate, with fewer of them while a program does not fit.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax

from ..checkpoint.source import ModelSource
from ..devices.startup import GPU_MEMORY_SHARE
from ..types.config import ONE_DEVICE, EngineConfig, MeshShape
from ..types.errors import ConfigError
from ..worker.compilation import CompiledPrograms, MemoryDemand, OutOfMemoryError, compile_served, demands
from ..worker.served import Devices, Program, open_weights
from .aot import CHIPS, ahead_of_time, hbm_limit, open_chips
from .fitting import Attempt, estimated_slots, fit_slots, memory_of_served
from .gpu_cards import CARDS, open_card, tracing_for


@dataclass(frozen=True, slots=True)
class VerifiedProgram:
    """A served program and the compiler's facts about it.

    Attributes:
      name: Label of the program.
      rows: Number of rows that it takes from the host: slots, prompts or chunks.
      hbm_bytes: Memory of a chip while the program runs, including everything else that stays there.
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
    """Compiles all programs of a served model for a TPU chip or a GPU. It takes minutes, but needs no such device.

    Call it before JAX looks for devices.

    Args:
      settings: Settings of the engine. Without `slots`, the same number is used as at a start.
      chip: One of `roost.engine.capacity.aot.CHIPS` or `roost.engine.capacity.gpu_cards.CARDS`.
      report: Called with the number of slots, of compiled programs, and of all programs.

    Raises:
      ConfigError: The chip is unknown, its compiler is missing, the mesh has several GPUs, or fewer than 8 slots fit.
      CheckpointError: The weights do not fit the model.
    """
    source = source.with_kv_dtype(settings.kv_dtype)
    devices, limit, tracing = open_target(chip, settings.shards or ONE_DEVICE)
    with (
        tracing,
        open_weights(source, settings, devices) as weights,
        ThreadPoolExecutor(os.cpu_count(), "compile") as executor,
    ):

        def compile_for(slots: int) -> CompiledPrograms:
            return compile_served(weights.served.with_slots(slots), executor, partial(report, slots))

        if settings.slots is not None:
            return _verification(compile_for(settings.slots), limit, None)
        memory = memory_of_served(weights, limit)

        def attempt(slots: int) -> Attempt[CompiledPrograms]:
            compiled = compile_for(slots)
            return Attempt(compiled, compiled.excess_bytes(limit))

        first = estimated_slots(memory, devices.shards)
        _, compiled = fit_slots(first, attempt, memory.row_bytes, devices.shards, int)
        return _verification(compiled, limit, first)


class Target(NamedTuple):
    """Devices to compile for, their memory for programs and arrays in bytes, and the context to trace in."""

    devices: Devices
    limit_bytes: int
    tracing: AbstractContextManager[None]


def open_target(chip: str, shape: MeshShape) -> Target:
    """Returns a chip to compile for. Call it before JAX looks for devices.

    Args:
      chip: One of `CHIPS` or `CARDS`.
      shape: Shape of the mesh of chips.

    Raises:
      ConfigError: The chip is unknown, its compiler is missing, or the mesh has several GPUs.
    """
    if chip in CARDS:
        limit = int(GPU_MEMORY_SHARE * CARDS[chip].memory_bytes)
        return Target(open_card(chip, shape), limit, tracing_for(chip))
    if chip not in CHIPS:
        raise ConfigError(f"device {chip!r} has no compiler here; give one of {', '.join((*CHIPS, *CARDS))}")
    devices = open_chips(chip, shape)
    return Target(devices, hbm_limit(devices), nullcontext())


def _verification(compiled: CompiledPrograms, limit_bytes: int, estimated: int | None) -> Verification:
    needs = demands(compiled.memory, limit_bytes)
    served, outcomes = compiled.served, compiled.outcomes
    programs = (_verified(each, outcomes[each.label], needs[each.label]) for each in served.programs.at_start)
    return Verification(served.slots, estimated, limit_bytes, tuple(programs))


def _verified(program: Program[Any], outcome: Any, need: MemoryDemand) -> VerifiedProgram:
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
