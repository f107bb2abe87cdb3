"""Errors of the Python API, converted from the service's errors for HTTP."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

from ...engine import RoostError
from ..errors.request_errors import ApiError
from ..errors.validation_errors import describe


class RequestError(RoostError, ValueError):
    """A request has an invalid prompt or parameter, and generates nothing.

    Args:
      message: One line that names the parameter and the fix.
      param: Name of the parameter, as in the HTTP API; None if no single one is wrong.
    """

    __module__ = "roost"

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


def checked[Checked: BaseModel](kind: type[Checked], fields: Mapping[str, Any]) -> Checked:
    """Returns fields of an HTTP body as their schema.

    Raises:
      RequestError: A field has the wrong type or is out of range.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        param = str(detail["loc"][0]) if detail["loc"] else None
        raise RequestError(describe(detail, detail["loc"]), param) from None
