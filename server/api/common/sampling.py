"""Conversion of a body's sampling fields to the engine's parameters, the same for all APIs."""

import secrets
from typing import Any

from ....engine import ParameterError, SamplingParams
from ...errors import bad_value
from ...text.served_model import ServedModel
from .sampling_fields import SamplingFields, requested_numbers


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
            max_tokens=max_tokens,
            min_tokens=body.min_tokens,
            end_token_ids=() if body.ignore_eos else model.end_token_ids,
            **fields,
        )
    except ParameterError as error:  # of values that depend on each other, which no schema checks
        raise bad_value(error.field, str(error)) from None
    return [params.with_seed(_seed(body.seed, choice)) for choice in range(num_choices)]


def _numbers(body: SamplingFields, model: ServedModel) -> dict[str, Any]:
    """Returns the request's numbers, with the checkpoint's for those that it leaves out."""
    numbers = {**model.defaults.sampling, **requested_numbers(body)}
    if numbers.get("top_p") == 0:  # clients mean the most likely token alone
        numbers |= {"temperature": 0.0, "top_p": 1.0}
    if numbers.get("top_k") == -1:  # vLLM's way to say off
        numbers["top_k"] = 0
    return numbers


def _seed(seed: int | None, choice: int) -> int:
    return secrets.randbits(64) if seed is None else (seed + choice) % 2**64
