"""Opens the telemetry that the settings request in addition to metrics: OpenTelemetry traces."""

from typing import TYPE_CHECKING

from ...engine import ConfigError
from ..settings import Settings

if TYPE_CHECKING:
    from .tracing import Tracing


def open_tracing(settings: Settings, model_id: str) -> "Tracing | None":
    """Returns the tracing that the settings request; None without it.

    Raises:
      ConfigError: The settings request traces, but OpenTelemetry is not installed.
    """
    if settings.otlp_traces_endpoint is None:
        return None
    try:
        from .tracing import exporting_to
    except ImportError:
        raise ConfigError("otlp_traces_endpoint needs an extra; in a clone of Roost, pip install '.[otel]'") from None
    return exporting_to(settings.otlp_traces_endpoint, model_id)
