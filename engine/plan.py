"""What a model needs and could do on a device, by arithmetic alone: a slot has a fixed size, so all of it is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .model.config import ModelConfig
from .model.cutting import slot_bytes, weight_bytes
from .model.shards import ALONE, Shards

FREE_SHARE: Final = 0.08
"""Of the device's memory, left to programs and their temporaries."""


_LOADING_MARGIN: Final = 1.15
_DTYPES: Final = {2: "bfloat16", 4: "float32"}


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
      shards: what the model and its slots are cut into, one for each device.
      weight_bytes: of the parameters on each device, with what they are filled up with.
      slot_bytes: of one request's state, whatever its length, likewise; a device has so many for each of its share of
        the slots.
      written_bytes: of it, what every step writes anew: all but the windows' keys and values.
      slots: requests that fit beside the weights, of all devices together; 0 where not even those fit.
      is_quantized: the matrices are int8.
    """

    config: ModelConfig
    device: Device
    shards: Shards
    weight_bytes: int
    slot_bytes: int
    written_bytes: int
    slots: int
    is_quantized: bool

    def memory_bytes(self, slots: int) -> int:
        """On each device: weights, and its share of so many slots."""
        return self.weight_bytes + self._share(slots) * self.slot_bytes

    @property
    def loading_bytes(self) -> int:
        """Of the host's memory that loading for one device takes at most, mapped files apart: the weights, or the
        largest tensor in float32 if that is more, and what is on its way (benchmarks/loading.md)."""
        largest = 4 * self.config.vocab_size * self.config.width
        return int(_LOADING_MARGIN * max(self.weight_bytes, largest))

    def decode_tokens_per_second(self, slots: int) -> float:
        """The limit: each step reads weights and full states, writes what changes, and computes every product. What
        devices tell each other is left out."""
        moved = self.memory_bytes(slots) + self._share(slots) * self.written_bytes
        memory = moved / self.device.bytes_per_second
        return slots / max(memory, slots / self.shards.count * self._seconds_per_token(logits=True))

    def prefill_tokens_per_second(self) -> float:
        """The limit by computation alone; logits are computed for a prompt's last token only."""
        return self.shards.count / self._seconds_per_token(logits=False)

    def _share(self, slots: int) -> int:
        return -(-slots // self.shards.count)

    def _seconds_per_token(self, *, logits: bool) -> float:
        """Two operations per parameter, the embedding as the logits' matrix, and attention over a full window."""
        config, device = self.config, self.device
        matrices = sum(outputs * inputs for outputs, inputs in _matrices(config))
        products = 2 * (matrices if logits else matrices - config.vocab_size * config.width)
        others = 2 * (config.num_parameters - matrices)
        others += 4 * config.block_types.count("attention") * config.width * (config.window + 1)
        speed = device.int8_per_second if self.is_quantized else device.flops_per_second
        return products / speed + others / device.flops_per_second


def plan(
    config: ModelConfig, device: Device, dtype_bytes: int, *, is_quantized: bool = False, shards: Shards = ALONE
) -> Plan:
    """How a model fits on a device, or on several of its kind, its activations and, if they are not int8, its matrices
    in `dtype_bytes`."""
    weights = weight_bytes(config, shards, _DTYPES[dtype_bytes], "int8" if is_quantized else None)
    whole = slot_bytes(config, shards, dtype_bytes)
    rings = config.block_types.count("attention") * 2 * config.window * config.head_dim * dtype_bytes
    left = (1 - FREE_SHARE) * device.memory_bytes - weights
    slots = max(0, int(left // whole)) * shards.count
    return Plan(config, device, shards, weights, whole, whole - rings, slots, is_quantized)


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of everything that is quantised."""
    d, e, f = config.width, config.lru_width, config.mlp_width
    mlp = [(2 * f, d), (d, f)]
    blocks = {"recurrent": [(2 * e, d), (d, e)], "attention": [(d + 2 * config.head_dim, d), (d, d)]}
    return [(config.vocab_size, d), *(m for block in config.block_types for m in blocks[block] + mlp)]
