"""Sampling fields of request bodies. Numbers are generated from the engine's table of sampling fields."""

from collections.abc import Callable
from typing import Any, Final

from pydantic import BaseModel, Field, create_model

from ....engine import SAMPLING_FIELDS
from .schema_base import Count, SchedulingFields

NUMBERS: Final = tuple(name for name, row in SAMPLING_FIELDS.items() if row.request is not None)
"""Names of the numbers that a body may have."""


class SamplingFields(SchedulingFields):
    """Fields of all bodies that generate. The numbers are added by `with_numbers`."""

    seed: int | None = None
    """Seed of all randomness: on CPU, the same request with the same seed gives the same tokens. Random by default."""

    ignore_eos: bool = False
    """Whether generation goes on past end tokens. It then needs a limit of tokens."""

    min_tokens: Count = 0
    """Number of tokens before which no end or stop token is chosen."""


def with_numbers[B: BaseModel](*names: str) -> Callable[[type[B]], type[B]]:
    """Returns a class decorator that adds numbers of the table to a body, such as `top_p: float | None`."""
    fields: dict[str, Any] = {name: _number(name) for name in names}

    def add(body: type[B]) -> type[B]:
        return create_model(body.__name__, __base__=body, __doc__=body.__doc__, __module__=body.__module__, **fields)

    return add


def requested_numbers(body: BaseModel) -> dict[str, Any]:
    """Returns the numbers that a request sets, by their names in `SamplingParams`."""
    known = type(body).model_fields  # a body has its unknown fields as attributes, too
    named = {name: getattr(body, name) for name in NUMBERS if name in known}
    return {name: value for name, value in named.items() if value is not None}


def _number(name: str) -> tuple[Any, Any]:
    """Returns the type and default of a field. It is None if the checkpoint may have another default."""
    row = SAMPLING_FIELDS[name]
    bounds = {} if row.request is None else row.request.bounds
    if row.checkpoint is None:
        return row.kind, Field(row.default, description=row.description, **bounds)
    description = f"{row.description} The default is the checkpoint's, or {row.default:g}."
    return row.kind | None, Field(None, description=description, **bounds)
