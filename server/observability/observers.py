"""Who watches requests beside the metrics: what the settings ask for, opened and closed together."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from ...engine import ConfigError
from ..settings import Settings
from .request_record import Observer


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Observation:
    """
    Attributes:
      observers: of what the engine does for a request.
      trace: put around the application, to see requests come and go.
      close: tells what has not been told; call it at the end.
    """

    observers: tuple[Observer, ...] = ()
    trace: Callable[[ASGIApp], ASGIApp] | None = None
    close: Callable[[], None] = _nothing


def open_observation(settings: Settings, model_id: str) -> Observation:
    """
    Raises:
      ConfigError: spans are asked for, and what makes them is not installed.
    """
    endpoint = settings.otlp_traces_endpoint
    if endpoint is None:
        return Observation()
    try:
        from .tracing import open_tracing
    except ImportError:
        raise ConfigError("otlp_traces_endpoint needs an extra; in a clone of Roost, pip install '.[otel]'") from None
    tracing = open_tracing(endpoint, model_id, importlib.metadata.version("roost"))
    return Observation((tracing,), tracing.around, tracing.shut_down)
