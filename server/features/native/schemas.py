"""Schema of the bodies of `/generate`."""

from typing import Annotated

from pydantic import Field

from ...openai.completions import StreamingFields
from ...schemas.body import TokenIds, TopLogprobs
from ...schemas.generation_fields import GenerationFields


class GenerateBody(GenerationFields, StreamingFields):
    """`POST /generate`."""

    token_ids: Annotated[TokenIds, Field(min_length=1)]
    """Token ids of the prompt, to which nothing is added."""

    logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each token; 0 reports only the token itself, the default nothing."""

    from_state: str | None = None
    """Id of a saved state that the prompt continues."""
