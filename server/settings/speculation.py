"""The setting of speculative decoding, spelt as vLLM spells it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

_NUMBERS: Final = ("num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max")


def _parse(value: Any) -> dict[str, Any] | None:
    """Returns the keys of a JSON object, or of a table of the config file; None for `null`.

    Raises:
      ValueError: It is no object, the method is unknown, a key is unknown, or a number is none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('must be JSON, such as {"method": "ngram"}') from None
    if value is None:
        return None
    if not isinstance(value, Mapping) or value.get("method") != "ngram":
        raise ValueError('must be an object with "method": "ngram", or null')
    for name, number in value.items():
        if name == "method":
            continue
        if name not in _NUMBERS:
            raise ValueError(f"has an unknown key {name!r}; the keys are method, {', '.join(_NUMBERS)}")
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{name} must be a whole number, got {number!r}")
    return dict(value)


SpeculativeConfig = Annotated[dict[str, Any] | None, NoDecode, BeforeValidator(_parse)]
"""Object with `method` and maybe some of `_NUMBERS`, or None."""
