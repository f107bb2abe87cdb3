"""Roofline of a model on a device: memory, slots and upper bounds of speed, from datasheets and shapes alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from .core.config import EngineConfig
from .core.errors import ConfigError
from .core.host_memory import available_memory
from .core.mesh import ONE_DEVICE, MeshShape
from .model.config import ModelConfig
from .model.sharding_rules import slot_bytes, weight_bytes
from .platform import TPU
from .worker.fitting import memory_model

FREE_SHARE: Final = 0.08
"""Share of memory left to programs and their temporaries on devices whose programs were not compiled."""

PREFILL_CHUNK: Final = EngineConfig().prefill_chunk
"""Maximum number of tokens of a prefill step, unless the settings say otherwise."""

_MAX_MESH: Final = 64
"""Maximum number of model shards of a proposed mesh."""

_MAX_DEVICES: Final = 3
"""Maximum number of other devices that are proposed."""

_LOADING_MARGIN: Final = 1.15
_DTYPES: Final = {2: "bfloat16", 4: "float32"}


@dataclass(frozen=True, slots=True)
class Peak:
    """Peak rates of one chip, from the vendor's datasheet, without structured sparsity.

    Attributes:
      bytes_per_second: Bandwidth of the main memory.
      flops_per_second: Floating-point operations per second of bfloat16 matrix products.
      int8_per_second: Operations per second of int8 matrix products.
    """

    bytes_per_second: float
    flops_per_second: float
    int8_per_second: float


@dataclass(frozen=True, slots=True)
class Device:
    """One chip, or this machine's CPU.

    Attributes:
      memory_bytes: Size of the main memory, by the datasheet.
      peak: Peak rates; None if no datasheet has them.
      hbm_bytes: Memory that the device's compiler gives to programs and their arrays; None if none was asked.
    """

    memory_bytes: int
    peak: Peak | None = None
    hbm_bytes: int | None = None


DEVICES: Final[Mapping[str, Device]] = {
    "v4": Device(32 * 10**9, Peak(1228e9, 275e12, 275e12)),
    "v5e": Device(16 * 10**9, Peak(819e9, 197e12, 394e12), int(15.75 * 2**30)),
    "v5p": Device(95 * 10**9, Peak(2765e9, 459e12, 918e12), int(95.73 * 2**30)),
    "v6e": Device(32 * 10**9, Peak(1640e9, 918e12, 1836e12), int(31.24 * 2**30)),
    "a100": Device(80 * 10**9, Peak(2039e9, 312e12, 624e12)),
    "a100-40gb": Device(40 * 10**9, Peak(1555e9, 312e12, 624e12)),
    "h100": Device(80 * 10**9, Peak(3350e9, 989e12, 1979e12)),
    "h200": Device(141 * 10**9, Peak(4800e9, 989e12, 1979e12)),
    "l4": Device(24 * 10**9, Peak(300e9, 121e12, 242e12)),
    "l40s": Device(48 * 10**9, Peak(864e9, 362e12, 733e12)),
    "a6000": Device(48 * 10**9, Peak(768e9, 154.8e12, 309.7e12)),
    "rtx4090": Device(24 * 10**9, Peak(1008e9, 165.2e12, 660.6e12)),
}
"""Known devices: TPUs from Google Cloud's documentation; GPUs from NVIDIA's datasheets (the SXM modules of A100, H100
and H200, the RTX A6000 and the GeForce RTX 4090)."""

CPU: Final = "cpu"


def find_device(name: str) -> Device:
    """Returns the device of this name; "cpu" has the memory that is available on this machine now.

    Raises:
      ConfigError: The device is unknown.
    """
    if name == CPU:
        return Device(available_memory())
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is not known; give one of {', '.join(DEVICES)} or {CPU}")
    return DEVICES[name]


@dataclass(frozen=True, slots=True)
class Roofline:
    """Memory and upper bounds of speed of a model on one device, or on a mesh of devices of one kind.

    Attributes:
      config: Shape of the model.
      device: The device.
      shards: Mesh over which the model and its slots are sharded.
      weight_bytes: Bytes of the parameters on each device, with their padding.
      slot_bytes: Bytes of one request's state, with its padding. Each device holds its share of the slots.
      written_bytes: Bytes of a slot's state that every step writes: all but the attention windows.
      slots: Number of requests that fit beside the weights, on all devices together; 0 if the weights do not fit.
      is_quantized: Whether the matrices are int8.
    """

    config: ModelConfig
    device: Device
    shards: MeshShape
    weight_bytes: int
    slot_bytes: int
    written_bytes: int
    slots: int
    is_quantized: bool

    def memory_bytes(self, slots: int) -> int:
        """Returns the bytes of the weights and of the share of `slots` slots on each device."""
        return self.weight_bytes + self._share(slots) * self.slot_bytes

    @property
    def loading_bytes(self) -> int:
        """Maximum bytes of host memory to load one device's weights, without mapped files (benchmarks/loading.md).

        It is the size of the weights, or of the largest tensor in float32 if that is more, with a margin for pieces in
        flight.
        """
        largest = 4 * self.config.vocab_size * self.config.width
        return int(_LOADING_MARGIN * max(self.weight_bytes, largest))

    def decode_tokens_per_second(self, slots: int) -> float:
        """Returns the upper bound of decode throughput with `slots` running requests.

        Each step reads the weights and full states, writes what changes, and computes every product. Collectives are
        left out.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        return slots / self.decode_seconds(slots)

    def decode_seconds(self, slots: int, window_tokens: int | None = None) -> float:
        """Returns the lower bound of the duration of a decode step.

        Args:
          slots: Number of slots that the step takes.
          window_tokens: Total tokens in their attention windows, which are all that is read of them; None fills them.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        share, window = self._share(slots), self.config.window
        filled = 1.0 if window_tokens is None else window_tokens / (slots * window)
        windows = share * (self.slot_bytes - self.written_bytes) * filled
        moved = self.weight_bytes + windows + 2 * share * self.written_bytes
        computed = slots / self.shards.count * self._seconds_per_token(logits=True)
        return max(moved / self._peak.bytes_per_second, computed)

    def prefill_seconds(self, tokens: int) -> float:
        """Returns the lower bound of the duration of a prefill step without logits.

        Each step reads the weights, but for the embedding, and computes every product.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        moved = self.weight_bytes * (1 - self._embedding_share)
        computed = tokens / self.shards.count * self._seconds_per_token(logits=False)
        return max(moved / self._peak.bytes_per_second, computed)

    def logits_seconds(self) -> float:
        """Returns the lower bound of the duration of computing the logits of a few rows: reading the embedding.

        Raises:
          ValueError: The device's peak rates are unknown.
        """
        return self.weight_bytes * self._embedding_share / self._peak.bytes_per_second

    def prefill_tokens_per_second(self) -> float:
        """Returns the upper bound of prefill throughput by computation; only a prompt's last token has logits."""
        return self.shards.count / self._seconds_per_token(logits=False)

    @property
    def _peak(self) -> Peak:
        if self.device.peak is None:
            raise ValueError("the device's peak rates are unknown")
        return self.device.peak

    @property
    def _embedding_share(self) -> float:
        """Share of the embedding in the parameters."""
        return self.config.vocab_size * self.config.width / self.config.num_parameters

    def _share(self, slots: int) -> int:
        return -(-slots // self.shards.count)

    def _seconds_per_token(self, *, logits: bool) -> float:
        """Returns the time of two operations per parameter (the embedding as the logits' matrix) and a full window."""
        config, peak = self.config, self._peak
        matrices = sum(outputs * inputs for outputs, inputs in _matrices(config))
        products = 2 * (matrices if logits else matrices - config.vocab_size * config.width)
        others = 2 * (config.num_parameters - matrices)
        others += 4 * config.block_types.count("attention") * config.width * (config.window + 1)
        speed = peak.int8_per_second if self.is_quantized else peak.flops_per_second
        return products / speed + others / peak.flops_per_second


def compute_roofline(
    config: ModelConfig,
    device: Device,
    dtype_bytes: int,
    *,
    is_quantized: bool = False,
    shards: MeshShape = ONE_DEVICE,
    chunk: int = PREFILL_CHUNK,
) -> Roofline:
    """Returns the roofline of a model on a device, or on a mesh of devices of its kind.

    Args:
      config: Shape of the model.
      device: The device.
      dtype_bytes: Bytes of an activation, and of a weight that is not int8: 2 or 4.
      is_quantized: Whether the matrices are int8.
      shards: Mesh over which the model and its slots are sharded.
      chunk: Maximum number of tokens of a prefill step.
    """
    weights = weight_bytes(config, shards, _DTYPES[dtype_bytes], "int8" if is_quantized else None)
    whole = slot_bytes(config, shards, dtype_bytes)
    rings = config.block_types.count("attention") * config.window * config.token_bytes(dtype_bytes)
    slots = shards.count * _rows(config, device, weights, dtype_bytes, whole, shards, chunk, is_quantized)
    return Roofline(config, device, shards, weights, whole, whole - rings, slots, is_quantized)


def _rows(
    config: ModelConfig,
    device: Device,
    weights: int,
    dtype_bytes: int,
    slot: int,
    shards: MeshShape,
    chunk: int,
    is_quantized: bool,
) -> int:
    """Returns the number of slots that fit beside the weights and the programs on each device."""
    if device.hbm_bytes is None:
        return max(0, int(((1 - FREE_SHARE) * device.memory_bytes - weights) // slot))
    return memory_model(
        config,
        TPU,
        shards,
        limit_bytes=device.hbm_bytes,
        weight_bytes=weights,
        dtype_bytes=dtype_bytes,
        chunk=chunk,
        is_quantized=is_quantized,
    ).rows


@dataclass(frozen=True, slots=True)
class Setup:
    """A device, and a model's precision and mesh on it.

    Attributes:
      device: Name of the device.
      dtype_bytes: Bytes of an activation, and of a weight that is not int8: 2 or 4.
      is_quantized: Whether the matrices are int8.
      shards: Mesh over which the model and its slots are sharded.
    """

    device: str
    dtype_bytes: int
    is_quantized: bool
    shards: MeshShape


def setups_that_fit(config: ModelConfig, setup: Setup) -> list[tuple[Setup, Roofline]]:
    """Returns setups that differ from `setup` in one thing and fit the model and a slot, with their rooflines.

    They are, as far as each exists: bfloat16 instead of float32, int8 weights, the smallest mesh with more model
    shards, and the known devices with the least memory.
    """
    is_cpu = setup.device == CPU
    meshes = (2**power for power in range(1, _MAX_MESH.bit_length()) if 2**power > setup.shards.model)
    by_memory = sorted((name for name in DEVICES if name != setup.device), key=lambda name: DEVICES[name].memory_bytes)
    ways = (
        (1, [] if setup.dtype_bytes == 2 else [replace(setup, dtype_bytes=2)]),
        (1, [] if setup.is_quantized else [replace(setup, is_quantized=True)]),
        (1, [] if is_cpu else [replace(setup, shards=MeshShape(setup.shards.data, model)) for model in meshes]),
        (_MAX_DEVICES, [replace(setup, device=name) for name in by_memory]),
    )
    return [found for count, way in ways for found in islice(_fitting(config, way), count)]


def _fitting(config: ModelConfig, setups: Iterable[Setup]) -> Iterator[tuple[Setup, Roofline]]:
    for setup in setups:
        device = find_device(setup.device)
        roofline = compute_roofline(
            config, device, setup.dtype_bytes, is_quantized=setup.is_quantized, shards=setup.shards
        )
        if roofline.slots:
            yield setup, roofline


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Returns the outputs and inputs of every matrix that int8 quantises."""
    d, e, f = config.width, config.lru_width, config.mlp_width
    mlp = [(2 * f, d), (d, f)]
    blocks = {"recurrent": [(2 * e, d), (d, e)], "attention": [(d + 2 * config.head_dim, d), (d, d)]}
    return [(config.vocab_size, d), *(m for block in config.block_types for m in blocks[block] + mlp)]
