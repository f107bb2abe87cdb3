"""Tries whether a start on a device finds a program that another process compiled, perhaps without the device."""

from typing import Any, Final

import jax

from ..checkpoint.source import ModelSource
from ..devices.platform import choose_platform, without_kernels
from ..devices.startup import configure_jax
from ..types.config import ONE_DEVICE, EngineConfig
from ..worker.compilation import compile_lowered
from ..worker.lowering import lower
from ..worker.served import Devices
from .chips import open_chips, served_on

_SLOTS: Final = 8
_HIT: Final = "/jax/compilation_cache/cache_hits"
"""Event of JAX: a program was read from the folder of compiled programs."""


def compiles_from_cache(source: ModelSource, settings: EngineConfig, chip: str | None = None) -> bool:
    """Compiles the decode program of 8 slots, and returns whether `settings.compile_cache` had it.

    Call it before anything else asks JAX for devices. The folder gets the program if it lacks it.

    Args:
      source: The model, of which no tensor is read.
      settings: Settings of the engine.
      chip: One of `chips.TPUS` to compile for, without having one; None for JAX's default device, as a start does.

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
        with served_on(devices, source.with_kv_dtype(settings.kv_dtype), settings, _SLOTS) as served:
            program = next(iter(served.programs.decode.values()))
            compile_lowered(lower(program, served), dict(devices.platform.compile_options))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return _HIT in events
