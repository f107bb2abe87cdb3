"""Metrics of files that are reloaded while the server runs, with the names of Prometheus' own reload metrics."""

from prometheus_client import CollectorRegistry, Gauge


class ReloadMetrics:
    """Outcome of the last reload of keys and certificates. The start counts as the first.

    Args:
      registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._successful = Gauge(
            "roost_config_last_reload_successful",
            "1 if files of keys and certificates could be loaded when they were last read; 0 if old ones are in use.",
            registry=registry,
        )
        self._time = Gauge(
            "roost_config_last_reload_success_timestamp_seconds",
            "Time at which the files of keys and certificates were last loaded, in seconds since 1970.",
            registry=registry,
        )
        self.record(is_successful=True)

    def record(self, *, is_successful: bool) -> None:
        """Records a reload.

        Args:
          is_successful: Whether the current versions of all files are in use.
        """
        self._successful.set(is_successful)
        if is_successful:
            self._time.set_to_current_time()
