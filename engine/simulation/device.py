"""A simulated device: the durations of its steps, its clock and its faults."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..capacity.roofline import Roofline
from ..types.config import FaultKind, Simulation
from ..types.errors import EngineDeadError

_SLOWDOWN: Final = 10.0
"""Factor of all durations on a slow device."""

_MAX_SLEEP_S: Final = 3600.0
"""Maximum time of one sleep: Python refuses an infinite one."""


class Efficiency(NamedTuple):
    """Share of the roofline's speed that steps reach.

    Attributes:
      decode: Share in decode steps.
      prefill: Share in prefill steps.
    """

    decode: float
    prefill: float


EFFICIENCIES: Final[Mapping[str, Efficiency]] = {"v5e": Efficiency(0.62, 0.92), "v6e": Efficiency(0.62, 0.71)}
"""Efficiencies of 2B by device, for decode steps of all slots and prefill steps of 512 tokens, from the schedules of
the TPU's compiler (benchmarks/tpu-programs.md). Decode steps of few slots are faster: 0.88 for 8 slots of a v5e."""

INT8_EFFICIENCIES: Final[Mapping[str, Efficiency]] = {"v5e": Efficiency(0.51, 0.80), "v6e": Efficiency(0.47, 0.62)}
"""The same with matrices and windows in int8. The prefill of a v6e was not measured: it is as much lower as a v5e's."""

_OTHERS: Final = Efficiency(0.62, 0.71)

_INT8_OTHERS: Final = Efficiency(0.47, 0.62)
"""Efficiencies of devices whose schedules were not measured: the lower one of the measured devices in each."""


class SimulatedDevice:
    """Runs steps in sequence, each as soon as it is dispatched and the previous one has ended.

    Args:
      simulation: Jitter and faults.
      seed: Seed of the jitter.
    """

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self._simulation = simulation
        self._random = random.Random(seed)
        self._num_steps = 0
        self._free_at = 0.0

    def dispatch(self, seconds: float) -> float:
        """Starts a step of this duration; returns the time of its end, in seconds of `time.monotonic`.

        Raises:
          EngineDeadError: The device is lost, by a fault of the simulation.
        """
        seconds *= 1 + self._simulation.jitter * self._random.uniform(-1, 1)
        fault = self._simulation.fault
        if fault is not None and self._num_steps >= fault.after:
            seconds = _with_fault(fault.kind, seconds, self._num_steps)
        self._num_steps += 1
        self._free_at = max(self._free_at, time.monotonic()) + seconds
        return self._free_at


def _with_fault(kind: FaultKind, seconds: float, step: int) -> float:
    match kind:
        case FaultKind.STUCK:
            return float("inf")
        case FaultKind.SLOW:
            return _SLOWDOWN * seconds
        case FaultKind.DYING:
            raise EngineDeadError(f"the simulated device was lost after {step} steps, as --simulate asks for")


def wait_until(end: float) -> None:
    """Waits until a time of `time.monotonic`, which may be infinite."""
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _MAX_SLEEP_S))


@dataclass(frozen=True, slots=True)
class StepDurations:
    """Durations of steps in seconds.

    Attributes:
      roofline: Roofline of the model on its devices.
      simulation: Settings, which may replace the roofline's durations.
    """

    roofline: Roofline
    simulation: Simulation

    def decode_seconds(self, rows: int, window_tokens: int) -> float:
        """Returns the duration of a decode step.

        Args:
          rows: Number of slots that the step takes, including those without a request.
          window_tokens: Total tokens in the attention windows of its requests.
        """
        if self.simulation.step_ms is not None:
            return self.simulation.step_ms / 1e3
        return self.roofline.decode_seconds(rows, window_tokens) / self._efficiency.decode

    def prefill_seconds(self, tokens: int, first_token_steps: float = 0.0) -> float:
        """Returns the duration of a prefill step.

        Args:
          tokens: Number of tokens with padding; 0 if only first tokens are sampled.
          first_token_steps: Steps that sample the first tokens of up to `MAX_PREFILL_ROWS` prompts each.
        """
        if self.simulation.prefill_tokens_per_s is not None:
            return tokens / self.simulation.prefill_tokens_per_s
        roofline = self.roofline
        prefill = roofline.prefill_seconds(tokens) if tokens else 0.0
        return (prefill + first_token_steps * roofline.logits_seconds()) / self._efficiency.prefill

    @property
    def _efficiency(self) -> Efficiency:
        if self.simulation.efficiency is not None:
            return Efficiency(self.simulation.efficiency, self.simulation.efficiency)
        device = self.simulation.device
        if self.roofline.quantize == self.roofline.config.kv_dtype == "int8":
            return INT8_EFFICIENCIES.get(device, _INT8_OTHERS)
        return EFFICIENCIES.get(device, _OTHERS)
