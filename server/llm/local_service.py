"""Opens a model in this process, behind the service that HTTP uses too."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ...engine import ConfigError
from ..assembly.engine_config import engine_config
from ..assembly.engine_loading import LoadProgress, make_engine
from ..assembly.service import make_service
from ..generation.service import Service
from ..model_hub import find_model
from ..observability.metrics import Metrics
from ..text.served_model import open_served_model
from .settings import load_model_settings

STOP_TIMEOUT_S: Final = 10.0
"""Seconds that the engine may take to end the step it is in."""

_DEFAULTS: Final[Mapping[str, Any]] = {"max_queue": 4096, "request_timeout": None}
"""Settings with another default than HTTP's: all requests are one program's, which waits for them."""


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
    config, source = engine_config(settings), find_model(settings.model)
    if config.hosts is not None:
        raise ConfigError(settings.rename("coordinator: several hosts serve over HTTP only, with roost serve"))
    served = open_served_model(source, config, settings.served_model_name, settings.max_tokens_limit)
    engine = make_engine(source, config, LoadProgress(config.compile_cache))
    metrics = Metrics(lambda: engine.stats)
    service = make_service(settings, config, engine, served, metrics)
    return replace(service, limits=replace(service.limits, max_unread_bytes=sys.maxsize))
