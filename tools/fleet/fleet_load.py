"""The load of a fleet: who asks what and when. Servers and their model (fleet_model.py) get the same requests."""

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from roost.engine import PREFILL_BLOCK
from roost.engine.planning.replicas import Arrival, Chip


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests with a shared prefix, a question of their own, and a reply of a random length.

    Attributes:
      prefixes: Number of prefixes.
      prefix_tokens: Tokens of a prefix, a multiple of `PREFILL_BLOCK`.
      question_tokens: Tokens after it.
      output_tokens: Shortest and longest reply, which are drawn uniformly.
      skew: Exponent of Zipf's law: the popularity of prefix n is proportional to n ** -skew.
      hot_share: Share of all requests that have the first prefix, on top of that.
    """

    prefixes: int
    prefix_tokens: int
    question_tokens: int
    output_tokens: tuple[int, int]
    skew: float = 1.0
    hot_share: float = 0.0

    @property
    def mean_output(self) -> float:
        return sum(self.output_tokens) / 2

    def prefill_tokens(self, _: Arrival, *, is_cached: bool) -> float:
        """Returns the prompt tokens that are prefilled for a request whose prefix is cached or not."""
        return (0 if is_cached else self.prefix_tokens) + blocks(self.question_tokens)


def blocks(tokens: int) -> int:
    """Returns a number of tokens rounded up to whole blocks."""
    return -(-tokens // PREFILL_BLOCK) * PREFILL_BLOCK


def capacity(chip: Chip, load: Workload, hit_rate: float) -> float:
    """Returns the requests per second at which a chip has no time left.

    Each needs its share of decode steps and its own prefill, and one slot for as long as both take.
    """
    prompt = blocks(load.question_tokens) + (1 - hit_rate) * load.prefix_tokens
    return 1 / (load.mean_output * chip.step_s / chip.slots + prompt / chip.prefill_tokens_per_s)


def arrivals(load: Workload, rate: Callable[[float], float], most: float, until: float, seed: int) -> Iterator[Arrival]:
    """Yields requests of a Poisson process whose rate changes.

    Args:
      rate: Requests per second at a time.
      most: Maximum of `rate`.
      until: Time of the last request, in seconds.
      seed: Seed of all that is drawn.
    """
    rng, now = random.Random(seed), 0.0
    shares = list(accumulate((1 - load.hot_share) * weight for weight in _zipf(load.prefixes, load.skew)))
    while (now := now + rng.expovariate(most)) < until:
        if rng.random() * most < rate(now):
            draw = rng.random()
            prefix = 0 if draw >= 1 - load.hot_share else min(bisect(shares, draw), load.prefixes - 1)
            yield Arrival(now, prefix, rng.randint(*load.output_tokens))


def steady(load: Workload, rate: float, until: float, seed: int) -> Sequence[Arrival]:
    """Returns requests of a Poisson process."""
    return list(arrivals(load, lambda _: rate, rate, until, seed))


def _zipf(count: int, skew: float) -> Sequence[float]:
    weights = [number**-skew for number in range(1, count + 1)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
