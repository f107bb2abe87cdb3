"""Compiles served programs ahead of time for TPUs that this machine needs not have.

libtpu (the `[tpu]` extra) has the whole compiler, which counts a program's memory and time. A start of the server
compiles the same programs with the same shapes, donation and compiler options: `open_weights`, `Served` and
`lowering.lower` make them for both. Nothing is allocated, and a checkpoint's tensors are not read.

    chips = open_chips("v5e", MeshShape(1, 1))
    with served_on(chips, open_model("random:2b"), EngineConfig(), slots=512) as served:
        compiled = compile_for_chips(served, served.programs.decode[512])
        compiled.memory.hbm_bytes, compiled.cost["optimal_seconds"], compiled.text
"""

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from ..checkpoint.source import ModelSource
from ..devices.platform import TPU
from ..model.collectives import Collectives
from ..types.config import DATA, MODEL, EngineConfig, MeshShape
from ..types.errors import ConfigError
from ..worker.compilation import OutOfMemoryError, ProgramMemory, compile_lowered, program_memory
from ..worker.lowering import idle_bytes, lower
from ..worker.served import Devices, Program, Served, open_weights

_ENVIRONMENT: Final = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Variables with which libtpu starts on a machine without a TPU. They are the same for all target chips."""

_TOPOLOGIES: Final[Mapping[str, tuple[tuple[int, ...], ...]]] = {
    "v5e": ((2, 2, 1), (2, 4, 1), (4, 4, 1), (4, 8, 1), (8, 8, 1)),
    "v5p": ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4)),
    "v6e": ((2, 2, 1), (2, 4, 1), (4, 4, 1), (4, 8, 1), (8, 8, 1)),
}
"""Topologies by chip, in rising order of size."""

_PALLAS_TARGETS: Final = ("tpu_custom_call", "__gpu$xla.gpu.triton")
"""How compiled programs for TPUs and GPUs call Pallas kernels."""

CHIPS: Final = tuple(_TOPOLOGIES)
"""Names of the chips that can be compiled for."""


def open_chips(chip: str, shape: MeshShape) -> Devices:
    """Returns TPU devices of one kind to compile for.

    Call it before anything asks JAX for devices: JAX's own backend becomes the CPU, so that a TPU of this machine stays
    free.

    Args:
      chip: One of `CHIPS`.

    Raises:
      ConfigError: The chip is unknown, the mesh is larger than the largest topology, or libtpu is missing.
    """
    chips = _topology(chip, shape.count)[: shape.count]
    shards = Collectives(shape.data, shape.model)
    if shape.count == 1:
        return Devices(TPU, shards, device=chips[0])
    return Devices(TPU, shards, Mesh(np.array(chips).reshape(shape.data, shape.model), (DATA, MODEL)))


def _topology(chip: str, count: int) -> list[jax.Device]:
    """Returns the devices of the smallest topology with at least `count` chips."""
    if chip not in _TOPOLOGIES:
        raise ConfigError(f"device {chip!r} has no compiler here; give one of {', '.join(CHIPS)}")
    sizes = next((sizes for sizes in _TOPOLOGIES[chip] if math.prod(sizes) >= count), None)
    if sizes is None:
        raise ConfigError(f"mesh of {count} chips is more than the {math.prod(_TOPOLOGIES[chip][-1])} that are known")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU compiler is missing; in a clone of Roost, pip install '.[tpu]' (Linux x86-64)")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    name = f"{chip}:{'x'.join(str(size) for size in (sizes if chip == 'v5p' else sizes[:2]))}"
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, chips_per_host_bounds=sizes)
    return list(topology.devices)


@contextmanager
def served_on(devices: Devices, source: ModelSource, settings: EngineConfig, slots: int) -> Iterator[Served]:
    """Yields what a start on these devices would serve.

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
    memory = program_memory(compiled, idle)
    assert isinstance(memory, ProgramMemory)
    return AheadOfTime(memory, compiled.cost_analysis() or {}, compiled.as_text() or "")


def hbm_limit(devices: Devices) -> int:
    """Returns the bytes of memory on each chip that the compiler gives to programs, in its own rounding.

    A program that no chip has room for is refused with this number.
    """
    chip = devices.device if devices.mesh is None else devices.mesh.devices.flat[0]
    huge = jax.ShapeDtypeStruct((2**20, 2**20), np.dtype("float32"), sharding=SingleDeviceSharding(chip))
    try:
        compile_lowered(jax.jit(lambda x: x + 1).lower(huge), {})
    except OutOfMemoryError as error:
        return error.limit_bytes
    raise AssertionError("the compiler accepts a program of four tebibytes")
