"""Errors of the Python API, and the errors of HTTP and of schemas as such."""

import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from ...engine import RoostError
from ..errors.request_errors import ApiError
from ..errors.validation_errors import describe
from ..settings.sources import closest


class RequestError(RoostError, ValueError):
    """A request has an invalid prompt, argument or parameter, and generates nothing.

    Args:
      message: One line that names the argument or parameter, and the fix.
      param: Name of the argument, such as `prompts[3]`, or of the HTTP API's parameter; None if no single one is wrong.
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


_reprs: Final = reprlib.Repr(maxstring=60, maxother=60)
"""Short forms of values, however large they are."""


def shown(value: Any) -> str:
    """Returns a value as a short line of Python."""
    text = _reprs.repr(value)
    return text if text.isprintable() else f"a value of the type {type(value).__name__}"


def wrong_value(name: str, form: str, value: Any) -> RequestError:
    """Returns the error for an argument of the wrong type.

    Args:
      name: Name of the argument, with the place in it, such as `prompts[3]`.
      form: Description of what the argument takes.
    """
    return RequestError(f"{name} must be {form}, got {shown(value)}", name)


def unknown_name(owner: str, name: str, names: Collection[str]) -> RequestError:
    """Returns the error for a keyword that a method or a class does not have.

    Args:
      owner: The method or the class.
      names: Keywords that it has.
    """
    guess = closest(name, names)
    hint = f"it has {', '.join(names) or 'none'}" if guess is None else f"did you mean {guess}?"
    return RequestError(f"{owner} has no argument {name!r}; {hint}", name)
