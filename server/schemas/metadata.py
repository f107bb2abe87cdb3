"""Metadata that clients store with objects, within OpenAI's limits."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

_MAX_PAIRS: Final = 16
"""Maximum number of pairs."""

_MAX_NAME: Final = 64
"""Maximum characters of a name."""

_MAX_VALUE: Final = 512
"""Maximum characters of a value."""


def _few(value: Any) -> Any:
    """Checks the number of pairs before the pairs, since each invalid pair would become a separate error."""
    if isinstance(value, dict) and len(value) > _MAX_PAIRS:
        sizes = {"field_type": "Dictionary", "max_length": _MAX_PAIRS, "actual_length": len(value)}
        raise PydanticKnownError("too_long", sizes)
    return value


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=_MAX_NAME)], Annotated[str, Field(max_length=_MAX_VALUE)]],
    BeforeValidator(_few),
    Field(max_length=_MAX_PAIRS),
]
"""Up to 16 names and values, of at most 64 and 512 characters."""
