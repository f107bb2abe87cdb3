"""Settings and counts of speculative decoding."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from .errors import ConfigError

MAX_DRAFTS: Final = 31
"""Maximum number of drafted tokens of a row and round: with the row's last token, they fill the largest round."""

MAX_MATCH: Final = 16
"""Maximum number of tokens that are compared to find a match."""


HISTORY: Final = 4096
"""Number of last tokens of a request, its prompt and its prediction included, in which drafts are looked up."""

MAX_PREDICTION: Final = 3072
"""Maximum number of tokens of a prediction in which drafts are looked up. The rest of `HISTORY` has last tokens of the
prompt at first. As output overwrites the oldest tokens, a prediction is lost only once the output is some 1,000 tokens
longer than the part of the prediction that it has reached."""

NO_DRAFTS: Final = "speculative_config works on one CPU device only; leave it out, or set it to null"
"""Error of devices that draft no tokens."""


@dataclass(frozen=True, slots=True)
class Speculation:
    """Settings of drafts that continue an earlier occurrence of a request's last tokens (n-grams).

    Attributes:
      num_tokens: Maximum number of drafted tokens of a request in one round.
      min_match: Number of last tokens that must occur earlier in the request.
      max_match: Maximum number of last tokens of a match that are compared.

    Raises:
      ConfigError: A number is out of range.
    """

    num_tokens: int = 7
    min_match: int = 2
    max_match: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= MAX_DRAFTS:
            raise ConfigError(f"num_speculative_tokens must be from 1 to {MAX_DRAFTS}, got {self.num_tokens}")
        if not 1 <= self.min_match <= self.max_match:
            raise ConfigError(
                f"prompt_lookup_min must be from 1 to prompt_lookup_max ({self.max_match}), got {self.min_match}"
            )
        if self.max_match > MAX_MATCH:
            raise ConfigError(f"prompt_lookup_max must be at most {MAX_MATCH}, got {self.max_match}")


def history_bytes(speculation: Speculation | None) -> int:
    """Returns the bytes of the last tokens that the device has of each slot; 0 without speculation."""
    return 0 if speculation is None else 4 * HISTORY


class PredictionUse(NamedTuple):
    """Tokens of a prediction that drafts had, as bits: bit i is the token at index i. Each token counts once.

    Attributes:
      drafted: Tokens that were drafted.
      accepted: Tokens that were drafted and accepted at least once.
    """

    drafted: int = 0
    accepted: int = 0

    @property
    def num_accepted(self) -> int:
        """Number of accepted tokens."""
        return self.accepted.bit_count()

    @property
    def num_rejected(self) -> int:
        """Number of tokens that were drafted, but never accepted."""
        return (self.drafted & ~self.accepted).bit_count()

    def plus(self, other: "PredictionUse") -> "PredictionUse":
        """Returns the use by the drafts of both."""
        return PredictionUse(self.drafted | other.drafted, self.accepted | other.accepted)


UNUSED_PREDICTION: Final = PredictionUse()
"""Use of a prediction of which no token was drafted."""


class DraftCounts(NamedTuple):
    """Numbers of drafted and of accepted tokens.

    Attributes:
      drafts: Number of rounds with drafted tokens, for each request separately.
      tokens: Number of drafted tokens.
      accepted: Number of accepted tokens by their place in the draft, for every place.
    """

    drafts: int = 0
    tokens: int = 0
    accepted: tuple[int, ...] = ()

    def plus(self, other: "DraftCounts") -> "DraftCounts":
        """Returns the sums."""
        accepted = tuple(a + b for a, b in zip(self.accepted, other.accepted, strict=True))
        return DraftCounts(self.drafts + other.drafts, self.tokens + other.tokens, accepted)
