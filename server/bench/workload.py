"""When requests come, whether or not the ones before have been answered."""

import math
import random
from collections.abc import Sequence

from ..settings import SettingsError


def parse_rate(option: str, text: str) -> float:
    """Reads requests per second, or `inf`.

    Raises:
      SettingsError: it is no such number.
    """
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate > 0:
        raise SettingsError(f"{option} {text!r}: give requests per second, above 0, or inf to send all at once")
    return rate


def poisson_times(rate: float, count: int, chance: random.Random) -> Sequence[float]:
    """Rising times in seconds: the first is 0, and the gaps are those of a Poisson process.

    Args:
      rate: arrivals per second; infinity lets all come at once.
    """
    if math.isinf(rate):
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += chance.expovariate(rate)
    return times


def balanced_interval(input_len: int, output_len: int, concurrency: int, prefill_chunk: int) -> int:
    """Rounds of the model between two arrivals that keep about `concurrency` requests running.

    A request needs one per chunk of its prompt, in which the others wait, and shares `output_len` with them.
    """
    return math.ceil(input_len / prefill_chunk) + math.ceil(output_len / concurrency)
