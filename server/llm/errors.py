"""Errors of the Python API. The service's own are made for HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...engine import RoostError
from ..errors.request_errors import ApiError


class RequestError(RoostError, ValueError):
    """A request has an invalid prompt or parameter, and generates nothing.

    Args:
      message: One line that names the parameter and the fix.
      param: Name of the parameter, as in the HTTP API; None if no single one is wrong.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@contextmanager
def python_errors() -> Iterator[None]:
    """Raises errors of the HTTP API as errors of the Python API.

    Raises:
      RequestError: The request is invalid.
      RoostError: The request failed for another reason.
    """
    try:
        yield
    except ApiError as error:
        if error.status_code < 500:
            raise RequestError(error.message, error.param) from None
        raise RoostError(error.message) from None
