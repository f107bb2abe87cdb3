"""Tracks open requests so that shutdown can drain them."""

from collections.abc import Iterator
from contextlib import contextmanager


class OpenRequests:
    """Counts open requests, and records how far shutdown has come.

    Shutdown has two steps, so that load balancers stop routing here before requests are refused: first readiness
    fails, then new requests do.

    Attributes:
      is_draining: Whether shutdown has begun, so that readiness fails.
      is_accepting: Whether new requests are accepted.
      count: Number of open requests.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.is_accepting = True
        self.count = 0

    @contextmanager
    def track(self) -> Iterator[None]:
        """Counts one request as open until the end of the `with` block."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
