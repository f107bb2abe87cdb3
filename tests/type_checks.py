"""What checks types and arrays' shapes in tests: beartype, asked once for each function.

jaxtyping asks whenever a `def` is run, so a function inside another is asked for at each call of that. A check takes a
millisecond to build, which was most of some tests' time. It is built when the function is first called.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import beartype

_checks: dict[tuple[str, str, inspect.Signature], Callable[..., Any]] = {}


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype(function)`, or what that gave for another of the same place, name and signature.

    One stands for the other, since what jaxtyping hands over is a signature and no more: it returns one of its own
    arguments, or nothing.
    """
    key = (function.__module__, function.__qualname__, inspect.signature(function))
    try:
        known = _checks.get(key)
    except TypeError:  # a default, or an annotation, without a hash
        return _checked_when_called(function)
    if known is None:
        known = _checks[key] = _checked_when_called(function)
    return known


def _checked_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that makes its check when it is first called: most functions of a process never are."""
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        checked = checked or beartype(function)
        return checked(*args, **kwargs)

    return call
