"""Tracks open requests so that shutdown can drain them."""

from dataclasses import dataclass


@dataclass(slots=True)
class OpenRequests:
    """Number of open requests, and the progress of shutdown.

    Shutdown has two steps, so that load balancers stop routing here before requests are refused: first readiness fails,
    then new requests are refused.

    Attributes:
      is_draining: Whether shutdown has begun, so that readiness fails.
      is_accepting: Whether new requests are accepted.
      count: Number of open requests.
    """

    is_draining: bool = False
    is_accepting: bool = True
    count: int = 0
