"""Numbers that sampling takes, as fields of request bodies."""

from typing import Any, Final

from pydantic import BaseModel

from ....engine import SAMPLING_FIELDS

_NUMBERS: Final = [name for name, row in SAMPLING_FIELDS.items() if row.request is not None]


def requested_numbers(body: BaseModel) -> dict[str, Any]:
    """Returns the numbers that a request sets, by their names in `SamplingParams`."""
    named = {name: getattr(body, name, None) for name in _NUMBERS}
    return {name: value for name, value in named.items() if value is not None}
