"""HTTP requests by handler, method and status, as counted by prometheus-fastapi-instrumentator, which vLLM uses."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter

UNKNOWN_HANDLER: Final = "none"
"""Handler of requests whose path matches no endpoint."""

_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

_OTHER_METHOD: Final = "other"
"""Label of all other methods. Clients can send arbitrary methods."""


class HttpMetrics:
    """Counts HTTP requests that have ended.

    Statuses are not grouped into classes. An expression for either form is `status=~"5.."`.

    Args:
      registry: Registry that the metrics are added to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "HTTP requests by path template, method and status; 499 if the client left. Probes are not counted.",
            ["handler", "method", "status"],
            registry=registry,
        )

    def count(self, handler: str, method: str, status: int) -> None:
        """Counts a request.

        Args:
          handler: Path template of its endpoint, or `UNKNOWN_HANDLER`.
        """
        self._requests.labels(handler, method if method in _METHODS else _OTHER_METHOD, str(status)).inc()
