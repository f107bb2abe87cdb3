"""Random prompts, lengths and arrival times of requests."""

import math
import random
import re
from collections.abc import Sequence
from typing import Final

from ...settings import SettingsError

FIRST_ID: Final = 4
"""First token id that prompts contain. Lower ids are padding and the beginning and end of a text in most vocabularies.
"""

_WORDS: Final = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
)
"""Common words, most of which are one token each in most vocabularies."""


def draw_token_ids(length: int, vocab_size: int, rng: random.Random) -> Sequence[int]:
    """Returns random token ids from `FIRST_ID` up; a vocabulary without such ids gives its last one.

    The content of a prompt does not affect speed.
    """
    first = min(FIRST_ID, vocab_size - 1)
    return rng.choices(range(first, vocab_size), k=length)


def draw_text(num_words: int, rng: random.Random) -> str:
    """Returns random common words."""
    return " ".join(rng.choices(_WORDS, k=num_words))


def parse_lengths(option: str, text: str) -> range:
    """Parses `512`, or `100:900` for any length between, both included.

    Raises:
      SettingsError: The text is neither.
    """
    found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise SettingsError(f"{option} {text!r}: give a length such as 512, or the ends of a range such as 100:900")
    return range(low, high + 1)


def poisson_times(rate: float, count: int, rng: random.Random) -> Sequence[float]:
    """Returns arrival times of a Poisson process, in seconds from the first.

    Args:
      rate: Arrivals per second; with infinity, all requests arrive at time 0.
      count: Number of arrivals.
      rng: Source of randomness.
    """
    if math.isinf(rate):
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.expovariate(rate)
    return times


def balanced_interval(input_len: int, output_len: int, concurrency: int, prefill_chunk: int) -> int:
    """Returns the model rounds between two arrivals that keep about `concurrency` requests running.

    A request needs one round per chunk of its prompt, in which the others wait, and shares `output_len` rounds with
    them.
    """
    return math.ceil(input_len / prefill_chunk) + math.ceil(output_len / concurrency)
