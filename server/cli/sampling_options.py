"""Sampling options of the command line. The engine is not imported: a client of a server needs none."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Options named like fields of `SamplingParams`. None leaves the value to the checkpoint or the server.

    Attributes:
      max_tokens: Maximum number of tokens; None without a limit of the checkpoint or server generates until the model
        stops.
      seed: Seed of the output; None draws another one for each.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def numbers(self) -> dict[str, Any]:
        """Returns the options that are set, without `max_tokens` and `seed`."""
        options = asdict(self).items()
        return {name: value for name, value in options if value is not None and name not in ("max_tokens", "seed")}
