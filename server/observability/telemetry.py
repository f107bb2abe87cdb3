"""Opens and closes the telemetry that the settings request in addition to metrics: OpenTelemetry traces."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from ...engine import ConfigError
from ..settings import Settings
from .request_metrics import Observer


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Observers of one server's requests.

    Attributes:
      observers: Observers of engine requests.
      trace: ASGI middleware that traces HTTP requests; None without tracing.
      close: Sends buffered data; called at shutdown.
    """

    observers: tuple[Observer, ...] = ()
    trace: Callable[[ASGIApp], ASGIApp] | None = None
    close: Callable[[], None] = lambda: None


def open_telemetry(settings: Settings, model_id: str) -> Telemetry:
    """Returns the telemetry that the settings request.

    Raises:
      ConfigError: The settings request traces, but OpenTelemetry is not installed.
    """
    endpoint = settings.otlp_traces_endpoint
    if endpoint is None:
        return Telemetry()
    try:
        from .tracing import open_tracing
    except ImportError:
        raise ConfigError("otlp_traces_endpoint needs an extra; in a clone of Roost, pip install '.[otel]'") from None
    tracing = open_tracing(endpoint, model_id, importlib.metadata.version("roost"))
    return Telemetry((tracing,), tracing.middleware, tracing.shut_down)
