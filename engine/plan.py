"""What a model needs and could do on a device, by arithmetic alone: a slot has a fixed size, so all of it is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .model.config import ModelConfig

FREE_SHARE: Final = 0.08
"""Of the device's memory, left to programs and their temporaries."""


_LOADING_MARGIN: Final = 1.15


@dataclass(frozen=True, slots=True)
class Device:
    """One chip, by its maker's figures.

    Attributes:
      memory_bytes: of its main memory.
      bytes_per_second: between that and the chip.
      flops_per_second: of bfloat16 products.
      int8_per_second: the same of int8 products.
    """

    memory_bytes: int
    bytes_per_second: float
    flops_per_second: float
    int8_per_second: float


DEVICES: Final[Mapping[str, Device]] = {
    "v4": Device(32 * 10**9, 1228e9, 275e12, 275e12),
    "v5e": Device(16 * 10**9, 819e9, 197e12, 394e12),
    "v5p": Device(95 * 10**9, 2765e9, 459e12, 918e12),
    "v6e": Device(32 * 10**9, 1640e9, 918e12, 1836e12),
    "h100": Device(80 * 10**9, 3350e9, 989e12, 1979e12),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Attributes:
      weight_bytes: of all parameters.
      slot_bytes: of one request's state, whatever its length.
      written_bytes: of it, what every step writes anew: all but the windows' keys and values.
      slots: requests that fit beside the weights; 0 where not even those fit.
      is_quantized: the matrices are int8.
    """

    config: ModelConfig
    device: Device
    weight_bytes: int
    slot_bytes: int
    written_bytes: int
    slots: int
    is_quantized: bool

    def memory_bytes(self, slots: int) -> int:
        """Weights and so many slots."""
        return self.weight_bytes + slots * self.slot_bytes

    @property
    def loading_bytes(self) -> int:
        """Of the host's memory that loading takes at most, mapped files apart: the weights, or the largest tensor in
        float32 if that is more, and what is on its way (benchmarks/loading.md)."""
        largest = 4 * self.config.vocab_size * self.config.width
        return int(_LOADING_MARGIN * max(self.weight_bytes, largest))

    def decode_tokens_per_second(self, slots: int) -> float:
        """The limit: each step reads weights and full states, writes what changes, and computes every product."""
        moved = self.memory_bytes(slots) + slots * self.written_bytes
        memory = moved / self.device.bytes_per_second
        return slots / max(memory, slots * self._seconds_per_token(logits=True))

    def prefill_tokens_per_second(self) -> float:
        """The limit by computation alone; logits are computed for a prompt's last token only."""
        return 1 / self._seconds_per_token(logits=False)

    def _seconds_per_token(self, *, logits: bool) -> float:
        """Two operations per parameter, the embedding as the logits' matrix, and attention over a full window."""
        config, device = self.config, self.device
        matrices = sum(outputs * inputs for outputs, inputs in _matrices(config))
        products = 2 * (matrices if logits else matrices - config.vocab_size * config.width)
        others = 2 * (config.num_parameters - matrices)
        others += 4 * config.block_types.count("attention") * config.width * (config.window + 1)
        speed = device.int8_per_second if self.is_quantized else device.flops_per_second
        return products / speed + others / device.flops_per_second


def plan(config: ModelConfig, device: Device, dtype_bytes: int, *, is_quantized: bool = False) -> Plan:
    """How a model fits on a device, its activations and, if they are not int8, its matrices in `dtype_bytes`."""
    weight_bytes = _weight_bytes(config, dtype_bytes, is_quantized)
    slot_bytes = config.state_bytes(dtype_bytes)
    rings = config.block_types.count("attention") * 2 * config.window * config.head_dim * dtype_bytes
    left = (1 - FREE_SHARE) * device.memory_bytes - weight_bytes
    slots = max(0, int(left // slot_bytes))
    return Plan(config, device, weight_bytes, slot_bytes, slot_bytes - rings, slots, is_quantized)


def _weight_bytes(config: ModelConfig, dtype_bytes: int, is_quantized: bool) -> int:
    """Matrices in `dtype_bytes`, or int8 with a float32 for each row; gates in `dtype_bytes`, vectors in float32."""
    recurrent = config.block_types.count("recurrent")
    gates = recurrent * 2 * config.lru_width**2 // config.num_heads
    matrices = sum(outputs * inputs for outputs, inputs in _matrices(config))
    vectors = config.num_parameters - gates - matrices
    scales = sum(outputs for outputs, _ in _matrices(config)) if is_quantized else 0
    return matrices * (1 if is_quantized else dtype_bytes) + gates * dtype_bytes + 4 * (vectors + scales)


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of everything that is quantised."""
    d, e, f = config.width, config.lru_width, config.mlp_width
    mlp = [(2 * f, d), (d, f)]
    blocks = {"recurrent": [(2 * e, d), (d, e)], "attention": [(d + 2 * config.head_dim, d), (d, d)]}
    return [(config.vocab_size, d), *(m for block in config.block_types for m in blocks[block] + mlp)]
