"""Opens a model in this process, with the same service as HTTP."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ...engine import ConfigError, EngineDeadError
from ..assembly.service import LoadProgress, engine_config, make_engine, make_service
from ..generation.service import Service
from ..model_hub import find_model
from ..observability.metrics import Metrics
from ..text.served_model import open_served_model
from .settings import load_model_settings

STOP_TIMEOUT_S: Final = 10.0
"""Maximum seconds for the engine to finish its current step."""

_DEFAULTS: Final[Mapping[str, Any]] = {"max_queue": 4096, "request_timeout": None}
"""Settings whose defaults differ from HTTP's: a single program sends all requests and waits for them."""


def open_service(model: str, given: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Service:
    """Returns the service of a model whose engine is not started.

    Args:
      model: The model, as for `roost serve`.
      given: Settings from the caller.
      defaults: Further defaults that differ from HTTP's.

    Raises:
      TypeError: A setting's name is unknown.
      RoostError: A setting is wrong, or the model cannot be opened.
    """
    settings = load_model_settings(model, given, {**_DEFAULTS, **defaults})
    config, source = engine_config(settings), find_model(settings.model, settings.lora)
    if config.hosts is not None:
        raise ConfigError(settings.rename("coordinator: several hosts serve over HTTP only, with roost serve"))
    served = open_served_model(source, config, settings.served_model_name, settings.max_tokens_limit)
    engine = make_engine(source, config, LoadProgress(config.compile_cache))
    metrics = Metrics(lambda: engine.stats)
    service = make_service(settings, config, engine, served, metrics)
    return replace(service, limits=replace(service.limits, max_unread_bytes=sys.maxsize))


def check_usable(name: str, pid: int, *, is_open: bool) -> None:
    """Raises an error where the process that opened a model has closed it, or is another one.

    Args:
      name: Name of the class that users know.
      pid: Id of the process that opened the model.
      is_open: Whether it has not been closed.

    Raises:
      EngineDeadError: The model was closed, or the process was forked.
    """
    if os.getpid() != pid:
        raise EngineDeadError(f"this {name} runs in the parent process: make one in each process, started by spawn")
    if not is_open:
        raise closed_error(name)


def closed_error(name: str) -> EngineDeadError:
    """Returns the error of a request of a closed model."""
    return EngineDeadError(f"this {name} was closed")


def description(name: str, service: Service, *, is_open: bool) -> str:
    """Returns what `repr` shows: the model, and the number of its slots or why it has none."""
    slots = service.engine.stats.slots
    loaded = f"slots={slots}" if slots else "not loaded"
    return f"<{name} {service.model.id!r}, {loaded if is_open else 'closed'}>"
