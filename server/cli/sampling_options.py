"""Sampling options of a command line. No engine here: a client of a server needs none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """None leaves the choice to the checkpoint or the server.

    Attributes:
      max_tokens: None, where nobody else sets a limit, means until the model stops.
      seed: None draws another one for each answer.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
