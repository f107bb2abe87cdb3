"""Sampling fields of bodies, generated from the engine's table, and their conversion to the engine's parameters."""

import secrets
from collections.abc import Callable
from typing import Any, Final

from pydantic import BaseModel, Field, create_model

from ...engine import SAMPLING_FIELDS, ParameterError, SamplingParams
from ..errors.request_errors import bad_value
from ..text.served_model import ServedModel
from .body import Count, SchedulingFields

NUMBERS: Final = tuple(name for name, row in SAMPLING_FIELDS.items() if row.request is not None)
"""Names of the numbers that a body may have."""


class SamplingFields(SchedulingFields):
    """Fields of all bodies that generate. The numbers are added by `with_numbers`."""

    seed: int | None = None
    """Seed of all randomness: on CPU, the same request with the same seed gives the same tokens. Random by default."""

    ignore_eos: bool = False
    """Whether generation continues past end tokens. It then needs a limit of tokens."""

    min_tokens: Count = 0
    """Number of tokens before which no end or stop token is chosen."""


def with_numbers[B: BaseModel](*names: str) -> Callable[[type[B]], type[B]]:
    """Returns a class decorator that adds numbers of the table to a body, such as `top_p: float | None`."""
    fields: dict[str, Any] = {name: _number(name) for name in names}

    def add(body: type[B]) -> type[B]:
        return create_model(body.__name__, __base__=body, __doc__=body.__doc__, __module__=body.__module__, **fields)

    return add


def _number(name: str) -> tuple[Any, Any]:
    """Returns the type and default of a field. The default is None if the checkpoint may have another default."""
    row = SAMPLING_FIELDS[name]
    bounds = {} if row.request is None else row.request.bounds
    if row.checkpoint is None:
        return row.kind, Field(row.default, description=row.description, **bounds)
    description = f"{row.description} The default is the checkpoint's, or {row.default:g}."
    return row.kind | None, Field(None, description=description, **bounds)


def sampling_params(
    body: SamplingFields, model: ServedModel, max_tokens: int | None, num_choices: int = 1, **fields: Any
) -> list[SamplingParams]:
    """Returns the parameters of each choice of a prompt, which differ in their seeds.

    Args:
      body: Body of the request.
      model: Model with the checkpoint's defaults.
      max_tokens: Maximum number of tokens; None generates until the model stops.
      num_choices: Number of choices.
      fields: Further fields of `SamplingParams`.

    Raises:
      ApiError: Fields contradict each other or do not fit the model.
    """
    limits = [limit for limit in (max_tokens, model.max_tokens_limit) if limit is not None]
    max_tokens = min(limits, default=None)
    if body.ignore_eos and max_tokens is None:
        raise bad_value("ignore_eos", "ignore_eos needs a limit: set max_tokens")
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise bad_value("min_tokens", f"min_tokens must be at most max_tokens, which is {max_tokens}")
    try:
        params = SamplingParams(
            **_numbers(body, model),
            seed=_seed(body.seed, 0),
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            end_token_ids=() if body.ignore_eos else model.end_token_ids,
            **fields,
        )
    except ParameterError as error:  # of values that depend on each other, which no schema checks
        raise bad_value(error.field, str(error)) from None
    return [params, *(params.with_seed(_seed(body.seed, choice)) for choice in range(1, num_choices))]


def _numbers(body: SamplingFields, model: ServedModel) -> dict[str, Any]:
    """Returns the request's numbers, and the checkpoint's for fields that the request omits."""
    numbers = {**model.defaults.sampling, **requested_numbers(body)}
    if numbers.get("top_p") == 0:  # clients mean the most likely token alone
        numbers |= {"temperature": 0.0, "top_p": 1.0}
    if numbers.get("top_k") == -1:  # vLLM's value for off
        numbers["top_k"] = 0
    return numbers


def requested_numbers(body: BaseModel) -> dict[str, Any]:
    """Returns the numbers that a request sets, by their names in `SamplingParams`."""
    known = type(body).model_fields  # a body has its unknown fields as attributes, too
    named = {name: getattr(body, name) for name in NUMBERS if name in known}
    return {name: value for name, value in named.items() if value is not None}


def _seed(seed: int | None, choice: int) -> int:
    return secrets.randbits(64) if seed is None else (seed + choice) % 2**64
