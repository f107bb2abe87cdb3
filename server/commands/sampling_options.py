"""Sampling options of the command line. Does not import the engine, which a client of a server does not need."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Final

import typer

MaxTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 always takes the most likely token; the default is the model's.")
]
TopP = Annotated[float | None, typer.Option(help="Probability mass to sample from; the default is the model's.")]
TopK = Annotated[int | None, typer.Option(help="Number of tokens to sample from; the default is the model's.")]
SamplingSeed = Annotated[int | None, typer.Option(help="The same seed gives the same response.")]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Options named like fields of `SamplingParams`. None leaves a value to the checkpoint or the server.

    Attributes:
      max_tokens: Maximum number of generated tokens; None without another limit generates until the model stops.
      temperature: Sampling temperature; 0 always takes the most likely token.
      top_p: Probability mass to sample from.
      top_k: Number of tokens to sample from.
      seed: Seed; None draws one for each response.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def given(self) -> dict[str, Any]:
        """Returns the options that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


SAMPLING_NAMES: Final = tuple(each.name for each in fields(SamplingOptions))
"""Names of the options, for errors."""
