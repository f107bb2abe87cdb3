"""Builds the runner of a simulated device from shapes."""

import numpy as np

from ..capacity.roofline import Roofline, compute_roofline, find_device
from ..checkpoint.identity import model_identity
from ..checkpoint.source import ModelSource
from ..devices.platform import TPU
from ..model.collectives import Collectives
from ..types.config import EngineConfig
from ..types.errors import ConfigError
from ..types.mesh import ONE_DEVICE
from ..types.simulation import SIMULATED, Simulation
from ..types.units import shown_bytes
from ..worker.served import Devices, Served
from .device import SimulatedDevice
from .durations import StepDurations
from .runner import SimulatedRunner


def simulated_runner(source: ModelSource, config: EngineConfig, simulation: Simulation) -> SimulatedRunner:
    """Returns a runner with the shapes of a TPU's programs, for any device.

    Args:
      source: The model, whose weights are not read.

    Raises:
      ConfigError: The device is unknown, or the model does not fit it.
    """
    source = source.with_kv_dtype(config.kv_dtype)
    dtype = source.config.dtype if config.dtype == "auto" else config.dtype
    quantize = config.quantize or source.config.quantize
    shards = config.shards or ONE_DEVICE
    roofline = compute_roofline(
        source.config,
        find_device(simulation.device),
        np.dtype(dtype).itemsize,
        quantize=quantize,
        shards=shards,
        chunk=config.prefill_chunk,
    )
    devices = Devices(TPU, Collectives(shards.data, shards.model))
    served = Served(source.config, config, devices, np.dtype(dtype), config.slots or _slots(roofline, simulation))
    identity = f"{SIMULATED}-{model_identity(source, dtype, quantize, config.seed)}"
    durations, device = StepDurations(roofline, simulation), SimulatedDevice(simulation, config.seed)
    return SimulatedRunner(served, served.state_format(identity), durations, device, simulation.output_tokens)


def _slots(roofline: Roofline, simulation: Simulation) -> int:
    """Returns the number of slots that fit the device.

    Raises:
      ConfigError: The model does not fit the device.
    """
    if not roofline.slots:
        device, needed = shown_bytes(roofline.device.memory_bytes), shown_bytes(roofline.memory_bytes(1))
        raise ConfigError(
            f"simulate: {simulation.device} has {device}, and the model with one slot needs {needed}; "
            "set slots, or simulate another device"
        )
    return roofline.slots
