"""NVIDIA GPUs that programs can be compiled for on a machine without one.

JAX's CUDA plugin has the whole compiler, down to a card's machine code. The facts that it needs about a card are in
`CARDS`. These numbers were written from published descriptions of the devices; none was read from a card.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from ...kernels import GpuSizes
from ..devices.platform import gpu_platform
from ..model.collectives import Collectives
from ..types.config import MeshShape
from ..types.errors import ConfigError
from ..worker.served import Devices

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
"""Cards by name."""


def open_card(name: str, shape: MeshShape) -> Devices:
    """Returns one card to compile for. Call it before anything asks JAX for devices: its own backend becomes the CPU.

    Args:
      name: One of `CARDS`.

    Raises:
      ConfigError: The mesh has more than one device, or JAX's CUDA plugin is missing.
    """
    if shape.count > 1:
        raise ConfigError(f"programs for {name} can be compiled for one card only, not for a mesh of {shape.count}")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise ConfigError("the GPU compiler is missing; in a clone of Roost, pip install '.[cuda13]' (Linux x86-64)")
    jax.config.update("jax_platforms", "cpu")
    card = CARDS[name]
    topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=_description(card))
    platform = gpu_platform(card.capability, GpuSizes(card.block_memory, card.multiprocessors))
    return Devices(replace(platform, compile_options=_UNTUNED), Collectives(), device=topology.devices[0])


@contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Makes programs that are traced in this thread ones for a card, which kernels ask JAX for."""
    card = CARDS[name]
    device = AbstractDevice(device_kind=card.kind, num_cores=card.multiprocessors, platform="cuda")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)):
        yield


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
