"""The clock of a simulated device, and its faults."""

import random
import time
from typing import Final

from ..types.errors import EngineDeadError
from ..types.simulation import FaultKind, Simulation

_SLOWDOWN: Final = 10.0
"""Factor of all durations on a slow device."""

_MAX_SLEEP_S: Final = 3600.0
"""Maximum time of one sleep: Python refuses an infinite one."""


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
