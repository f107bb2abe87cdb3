"""What a model needs and could do on a device, by arithmetic alone: a slot has a fixed size, so all of it is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .model.config import ModelConfig

FREE_SHARE: Final = 0.08
"""Of the device's memory, left to programs and their temporaries."""


@dataclass(frozen=True, slots=True)
class Device:
    """One chip, by its maker's figures.

    Attributes:
      memory_bytes: of its main memory.
      bytes_per_second: between that and the chip.
      flops_per_second: of bfloat16 products.
    """

    memory_bytes: int
    bytes_per_second: float
    flops_per_second: float


DEVICES: Final[Mapping[str, Device]] = {
    "v4": Device(32 * 10**9, 1228e9, 275e12),
    "v5e": Device(16 * 10**9, 819e9, 197e12),
    "v5p": Device(95 * 10**9, 2765e9, 459e12),
    "v6e": Device(32 * 10**9, 1640e9, 918e12),
    "h100": Device(80 * 10**9, 3350e9, 989e12),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """
    Attributes:
      weight_bytes: of all parameters.
      slot_bytes: of one request's state, whatever its length.
      written_bytes: of it, what every step writes anew: all but the windows' keys and values.
      slots: requests that fit beside the weights; 0 where not even those fit.
    """

    config: ModelConfig
    device: Device
    weight_bytes: int
    slot_bytes: int
    written_bytes: int
    slots: int

    def memory_bytes(self, slots: int) -> int:
        """Weights and so many slots."""
        return self.weight_bytes + slots * self.slot_bytes

    def decode_tokens_per_second(self, slots: int) -> float:
        """The limit: each step reads weights and full states, writes what changes, and computes every product."""
        moved = self.memory_bytes(slots) + slots * self.written_bytes
        memory = moved / self.device.bytes_per_second
        compute = slots * self._flops_per_token() / self.device.flops_per_second
        return slots / max(memory, compute)

    def prefill_tokens_per_second(self) -> float:
        """The limit by computation alone; logits are computed for a prompt's last token only."""
        logits = 2 * self.config.vocab_size * self.config.width
        return self.device.flops_per_second / (self._flops_per_token() - logits)

    def _flops_per_token(self) -> int:
        """Two per parameter, the embedding as the logits' matrix, and attention over a full window."""
        layers = self.config.block_types.count("attention")
        return 2 * self.config.num_parameters + 4 * layers * self.config.width * (self.config.window + 1)


def plan(config: ModelConfig, device: Device, dtype_bytes: int) -> Plan:
    """How a model fits on a device, its weights and activations in numbers of `dtype_bytes`."""
    weight_bytes, slot_bytes = config.num_parameters * dtype_bytes, config.state_bytes(dtype_bytes)
    rings = config.block_types.count("attention") * 2 * config.window * config.head_dim * dtype_bytes
    left = (1 - FREE_SHARE) * device.memory_bytes - weight_bytes
    slots = max(0, int(left // slot_bytes))
    return Plan(config, device, weight_bytes, slot_bytes, slot_bytes - rings, slots)
