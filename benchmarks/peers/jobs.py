"""Jobs: requests with a prompt and a number of tokens to generate, and their latencies.

Requires the standard library only.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from models import RESERVED

Job = tuple[Sequence[int], int]
"""Prompt, and number of tokens to generate."""

Range = Sequence[int]
"""Smallest and largest number of tokens."""


def equal_jobs(rows: int, prompt: int, new: int, vocab_size: int, seed: int) -> list[Job]:
    """Returns jobs of the same lengths, the same for every contestant."""
    rng = random.Random(f"equal {rows} {prompt} {new} {seed}")
    return [(draw_ids(prompt, vocab_size, rng), new) for _ in range(rows)]


def mixed_jobs(count: int, prompt: Range, new: Range, vocab_size: int, seed: int) -> list[Job]:
    """Returns jobs of different lengths, the same for every contestant; the logarithms of lengths are uniform."""
    rng = random.Random(f"mixed {count} {seed}")
    lengths = [(draw_length(prompt, rng), draw_length(new, rng)) for _ in range(count)]
    return [(draw_ids(length, vocab_size, rng), tokens) for length, tokens in lengths]


def draw_length(bounds: Range, rng: random.Random) -> int:
    low, high = bounds
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def draw_ids(length: int, vocab_size: int, rng: random.Random) -> list[int]:
    return rng.choices(range(RESERVED, vocab_size), k=length)


def outcome(arrivals: Sequence[Sequence[float]], tokens: int, seconds: float) -> dict[str, float]:
    """Returns the numbers of a job.

    Args:
      arrivals: Seconds from when each request was due to each piece of its response.
      tokens: Number of all generated tokens.
      seconds: Time from the first request to the last token.
    """
    return {
        "job_s": seconds,
        "output_tokens_per_s": tokens / seconds,
        "requests_per_s": len(arrivals) / seconds,
        **percentiles_ms("ttft", [times[0] for times in arrivals]),
        **percentiles_ms("itl", [after - before for times in arrivals for before, after in pairwise(times)]),
    }


def percentiles_ms(name: str, seconds: Sequence[float]) -> Mapping[str, float]:
    """Returns median and 99th percentile in milliseconds, interpolated as numpy does; nothing of nothing."""
    if not seconds:
        return {}
    values = [*seconds] * 2 if len(seconds) == 1 else seconds  # `quantiles` wants two
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"{name}_p50_ms": 1e3 * cuts[49], f"{name}_p99_ms": 1e3 * cuts[98]}
