"""Programs compiled ahead of time for TPUs and GPUs that this machine needs not have.

libtpu (the `[tpu]` extra) and JAX's CUDA plugin (`[cuda13]`) have the whole compilers, which count a program's memory
and time. A start of the server compiles the same programs with the same shapes, donation and compiler options.
`verify_plan` compiles all of them, with as many slots as a start would choose. Nothing is allocated, and a checkpoint's
tensors are not read.

    devices = open_chips("v5e", MeshShape(1, 1))
    with served_on(devices, open_model("random:2b"), EngineConfig(), slots=512) as served:
        compiled = compile_for_chips(served, served.programs.decode[512])
        compiled.memory.hbm_bytes, compiled.cost["optimal_seconds"], compiled.text
"""

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh, SingleDeviceSharding, use_abstract_mesh

from ...kernels import GpuSizes
from ..checkpoint.source import ModelSource
from ..devices.platform import GPU_MEMORY_SHARE, TPU, choose_platform, configure_jax, gpu_platform, without_kernels
from ..model.sharding import Collectives
from ..types.config import DATA, MODEL, ONE_DEVICE, EngineConfig, MeshShape
from ..types.errors import ConfigError
from ..worker.compilation import (
    CompiledPrograms,
    MemoryDemand,
    OutOfMemoryError,
    ProgramMemory,
    compile_lowered,
    compile_served,
    demands,
    program_memory,
)
from ..worker.lowering import idle_bytes, lower
from ..worker.served import Devices, Program, Served, open_weights
from .roofline import estimated_slots, fit_slots, memory_of_served

_ENVIRONMENT: Final = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Variables with which libtpu starts on a machine without a TPU. They are the same for all target chips."""

_TOPOLOGIES: Final[Mapping[str, tuple[tuple[int, ...], ...]]] = {
    "v5e": ((1, 1, 1), (2, 2, 1), (2, 4, 1), (4, 4, 1), (4, 8, 1), (8, 8, 1)),
    "v5p": ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4)),
    "v6e": ((1, 1, 1), (2, 2, 1), (2, 4, 1), (4, 4, 1), (4, 8, 1), (8, 8, 1)),
    "v7x": ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4)),
}
"""Topologies by chip, in rising order of size. Each chip is a device, and a v7x two."""

_TORI: Final = ("v5p", "v7x")
"""Chips whose topologies have three dimensions."""

_PALLAS_TARGETS: Final = ("tpu_custom_call", "__gpu$xla.gpu.triton")
"""How compiled programs for TPUs and GPUs call Pallas kernels."""

TPUS: Final = tuple(_TOPOLOGIES)
"""Names of the TPU chips that can be compiled for."""

_CACHE_HIT: Final = "/jax/compilation_cache/cache_hits"
"""Event of JAX: a program was read from the folder of compiled programs."""

_AHEAD_SLOTS: Final = 8

_TOOLKIT: Final = "13.0.0"
"""Version of CUDA that the descriptions name."""

_UNTUNED: Final = (("xla_gpu_enable_triton_gemm", "False"),)
"""Options of XLA's compiler: products call cuBLAS, since generated kernels cannot be tuned without a card."""


class Card(NamedTuple):
    """A card, as XLA's compiler wants to know it.

    Attributes:
      kind: JAX's name of the device.
      capability: Compute capability.
      block_memory: Bytes of shared memory that a block of threads may have.
      shared_memory: Bytes of shared memory of a multiprocessor.
      threads: Maximum number of threads of a multiprocessor.
      bandwidth: Bytes of main memory per second.
      l2_bytes: Bytes of the second-level cache.
      memory_bytes: Main memory that a CUDA context leaves to programs and their arrays.
    """

    kind: str
    capability: tuple[int, int]
    multiprocessors: int
    block_memory: int
    shared_memory: int
    threads: int
    bandwidth: int
    l2_bytes: int
    clock_ghz: float
    memory_bytes: int


CARDS: Final[Mapping[str, Card]] = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 166_912, 167_936, 2048, 2_039 * 10**9, 40 * 2**20, 1.41, 84_987_740_160
    ),
    "b200": Card(
        "NVIDIA B200", (10, 0), 148, 232_448, 233_472, 2048, 8_000 * 10**9, 132_644_864, 1.97, 180_000_000_000
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 232_448, 233_472, 2048, 3_352 * 10**9, 50 * 2**20, 1.98, 84_942_979_072
    ),
    "l4": Card("NVIDIA L4", (8, 9), 58, 101_376, 102_400, 1536, 300 * 10**9, 48 * 2**20, 2.04, 23_500_000_000),
}
"""NVIDIA GPUs that can be compiled for, by name.

The numbers were written from published descriptions of the devices; none was read from a card."""


def open_chips(chip: str, shape: MeshShape) -> Devices:
    """Returns devices of one kind to compile for.

    Call it before anything asks JAX for devices: JAX's own backend becomes the CPU, and leaves the chips of this
    machine free.

    Args:
      chip: One of `TPUS` or `CARDS`.

    Raises:
      ConfigError: The chip is unknown, no mesh has this size, or the compiler is missing.
    """
    if chip in CARDS:
        return _open_card(CARDS[chip], chip, shape)
    chips = _topology(chip, shape.count)[: shape.count]
    shards = Collectives(shape.data, shape.model)
    if shape.count == 1:
        return Devices(TPU, shards, device=chips[0])
    return Devices(TPU, shards, Mesh(np.array(chips).reshape(shape.data, shape.model), (DATA, MODEL)))


def _topology(chip: str, count: int) -> list[jax.Device]:
    """Returns the devices of the smallest topology with at least `count` chips."""
    if chip not in TPUS:
        raise ConfigError(f"device {chip!r} has no compiler here; give one of {', '.join((*TPUS, *CARDS))}")
    sizes = next((sizes for sizes in _TOPOLOGIES[chip] if math.prod(sizes) >= count), None)
    if sizes is None:
        raise ConfigError(f"mesh of {count} chips is more than the {math.prod(_TOPOLOGIES[chip][-1])} that are known")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU compiler is missing; in a clone of Roost, pip install '.[tpu]' (Linux x86-64)")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    name = f"{'tpu7x' if chip == 'v7x' else chip}:{'x'.join(map(str, sizes if chip in _TORI else sizes[:2]))}"
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, chips_per_host_bounds=sizes)
    return list(topology.devices)


def _open_card(card: Card, name: str, shape: MeshShape) -> Devices:
    if shape.count > 1:
        raise ConfigError(f"programs for {name} can be compiled for one card only, not for a mesh of {shape.count}")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError("the GPU compiler is missing; in a clone of Roost, pip install '.[cuda13]' (Linux x86-64)")
    jax.config.update("jax_platforms", "cpu")
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=_description(card))
    platform = gpu_platform(card.capability, GpuSizes(card.block_memory, card.multiprocessors))
    return Devices(replace(platform, compile_options=_UNTUNED), Collectives(), device=topology.devices[0])


def _description(card: Card) -> str:
    """Returns a card as XLA's `GpuTargetConfigProto` in text format."""
    major, minor = card.capability
    accelerated = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "{card.kind}"
        gpu_device_info {{
          name: "{card.kind}"
          device_vendor: "NVIDIA Corporation"
          platform_version: "Compute Capability {major}.{minor}"
          cuda_compute_capability {{ major: {major} minor: {minor}{accelerated} }}
          driver_version: "{_TOOLKIT}" runtime_version: "{_TOOLKIT}" compile_time_toolkit_version: "{_TOOLKIT}"
          dnn_version: "9.10.0"
          core_count: {card.multiprocessors}
          fpus_per_core: 128
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: {card.threads}
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {card.block_memory}
          shared_memory_per_core: {card.shared_memory}
          l2_cache_size: {card.l2_bytes}
          memory_bandwidth: {card.bandwidth}
          device_memory_size: {card.memory_bytes}
          clock_rate_ghz: {card.clock_ghz}
          device_address_bits: 64
        }}
    """


def tracing_for(chip: str) -> AbstractContextManager[Any]:
    """Makes programs that are traced in this thread ones for a chip: kernels for GPUs ask JAX for theirs."""
    if chip not in CARDS:
        return nullcontext()
    card = CARDS[chip]
    device = AbstractDevice(device_kind=card.kind, num_cores=card.multiprocessors, platform="cuda")
    return use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device))


def memory_limit(chip: str, devices: Devices) -> int:
    """Returns the bytes of memory of each chip that programs and their arrays may take.

    That of a TPU is the compiler's, in its own rounding: a program that no chip has room for is refused with it.
    """
    if chip in CARDS:
        return int(GPU_MEMORY_SHARE * CARDS[chip].memory_bytes)
    one = devices.device if devices.mesh is None else devices.mesh.devices.flat[0]
    huge = jax.ShapeDtypeStruct((2**20, 2**20), np.dtype("float32"), sharding=SingleDeviceSharding(one))
    try:
        compile_lowered(jax.jit(lambda x: x + 1).lower(huge), {})
    except OutOfMemoryError as error:
        return error.limit_bytes
    raise AssertionError("the compiler accepts a program of four tebibytes")


@contextmanager
def served_on(devices: Devices, source: ModelSource, settings: EngineConfig, slots: int) -> Iterator[Served]:
    """Yields the record that a server on these devices would start with.

    Args:
      devices: Devices from `open_chips`.
      settings: Settings of the engine; `slots`, `shards` and `hosts` are not read.
      slots: Number of requests that run at a time.

    Raises:
      CheckpointError: The weights do not fit the model.
    """
    with open_weights(source, settings, devices) as weights:
        yield weights.served.with_slots(slots)


class AheadOfTime(NamedTuple):
    """A program that was compiled ahead of time.

    Attributes:
      memory: Memory on each device, as the compiler counts it.
      cost: The compiler's cost analysis: "flops", "bytes accessed", "optimal_seconds" and others.
      text: The program after all optimizations.
    """

    memory: ProgramMemory
    cost: Mapping[str, float]
    text: str

    @property
    def custom_calls(self) -> int:
        """Number of calls of Pallas kernels."""
        return sum(self.text.count(f'custom_call_target="{target}"') for target in _PALLAS_TARGETS)


def compile_for_chips(
    served: Served, program: Program[Any], options: Mapping[str, str] | None = None
) -> AheadOfTime | OutOfMemoryError:
    """Compiles a served program with the options of a start; returns an error if it needs more memory than there is.

    Args:
      served: The model, from `served_on`.
      program: One of `served.programs`.
      options: Options of XLA's compiler that are added to the platform's, such as options of its cost analysis.
    """
    lowered = lower(program, served)
    try:
        compiled = compile_lowered(lowered, {**dict(served.devices.platform.compile_options), **(options or {})})
    except OutOfMemoryError as error:
        return error
    return ahead_of_time(compiled, idle_bytes(lowered, served))


def ahead_of_time(compiled: Any, idle: int = 0) -> AheadOfTime:
    """Returns memory, costs and text of a compiled program; `idle` is `ProgramMemory.idle_bytes`."""
    return AheadOfTime(program_memory(compiled, idle), compiled.cost_analysis() or {}, compiled.as_text() or "")


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
      chip: One of `TPUS` or `CARDS`.
      report: Called with the number of slots, of compiled programs, and of all programs.

    Raises:
      ConfigError: The chip is unknown, its compiler is missing, the mesh has several GPUs, or fewer than 8 slots fit.
      CheckpointError: The weights do not fit the model.
    """
    source = source.with_kv_dtype(settings.kv_dtype)
    devices = open_chips(chip, settings.shards or ONE_DEVICE)
    limit = memory_limit(chip, devices)
    with (
        tracing_for(chip),
        open_weights(source, settings, devices) as weights,
        ThreadPoolExecutor(os.cpu_count(), "compile") as executor,
    ):

        def compile_for(slots: int) -> CompiledPrograms:
            return compile_served(weights.served.with_slots(slots), executor, partial(report, slots))

        if settings.slots is not None:
            return _verification(compile_for(settings.slots), limit, None)
        memory = memory_of_served(weights, limit)
        first = estimated_slots(memory, devices.shards)
        return _verification(fit_slots(first, compile_for, memory, devices.shards), limit, first)


def _verification(compiled: CompiledPrograms, limit_bytes: int, estimated: int | None) -> Verification:
    needs = demands(compiled.memory, limit_bytes)
    served, outcomes = compiled.served, compiled.outcomes
    programs = (_verified(each, outcomes[each.label], needs[each.label]) for each in served.programs.compiled)
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


def compiles_from_cache(source: ModelSource, settings: EngineConfig, chip: str | None = None) -> bool:
    """Compiles the decode program of 8 slots, and returns whether `settings.compile_cache` had it.

    Call it before anything else asks JAX for devices. The folder gets the program if it lacks it.

    Args:
      source: The model, of which no tensor is read.
      settings: Settings of the engine.
      chip: One of `TPUS` to compile for, without having one; None for JAX's default device, as a start does.

    Raises:
      ConfigError: The folder cannot be used, or the chip has no compiler here.
    """
    configure_jax(settings.compile_cache)
    if chip is None:
        devices = Devices(choose_platform(ONE_DEVICE, settings.without_kernels))
    else:
        devices = open_chips(chip, ONE_DEVICE)
        devices = devices._replace(platform=without_kernels(devices.platform, settings.without_kernels))
    events: list[str] = []

    def listen(event: str, **_: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        with served_on(devices, source.with_kv_dtype(settings.kv_dtype), settings, _AHEAD_SLOTS) as served:
            program = next(iter(served.programs.decode.values()))
            compile_lowered(lower(program, served), dict(devices.platform.compile_options))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return _CACHE_HIT in events
