"""Loads that a replica serves together, and the simulated chip that serves them, from the roofline of a model."""

from dataclasses import dataclass
from math import fsum

from ..capacity.roofline import PREFILL_CHUNK, Roofline
from ..devices.platform import TPU
from ..simulation.durations import StepDurations
from ..types.config import PREFILL_BLOCK
from ..types.simulation import Simulation
from ..worker.served import part_rows
from .load import ExpectedLoad
from .replica import Arrival, Chip


@dataclass(frozen=True, slots=True)
class Mix:
    """Loads that a replica serves together. The prefix of an arrival is the index of its load, and is never cached.

    Attributes:
      chip: Device of a replica.
      prompts_s: Seconds of the prefill steps of a prompt of each load, whose first token is sampled alone.
      first_token_s: Seconds of a step that samples first tokens, of one prompt or of several.
    """

    loads: tuple[ExpectedLoad, ...]
    chip: Chip
    prompts_s: tuple[float, ...]
    first_token_s: float

    @property
    def requests_per_s(self) -> float:
        """Requests per second of all loads together."""
        return fsum(load.requests_per_s for load in self.loads)

    @property
    def busy_s(self) -> float:
        """Mean seconds of chip time of a request while all slots are in use."""
        token_s = self.chip.step_s / self.chip.slots
        each = zip(self.loads, self.prompts_s, strict=True)
        busy = (load.requests_per_s * (load.output_tokens * token_s + prompt_s) for load, prompt_s in each)
        return fsum(busy) / self.requests_per_s

    def prefill_tokens(self, arrival: Arrival, *, is_cached: bool) -> float:
        """Returns the number of tokens in full chunks whose prefill has the duration of the prompt's steps."""
        return self.prompts_s[arrival.prefix] * self.chip.prefill_tokens_per_s


def mix_on(loads: tuple[ExpectedLoad, ...], roofline: Roofline, device: str, itl_target_s: float | None) -> Mix:
    """Returns loads on a device whose steps have the durations of `roost serve --simulate`.

    Args:
      itl_target_s: Target of the scheduler for the inter-token latency; 0 for throughput, None for the default.
    """
    durations = StepDurations(roofline, Simulation(device, device))
    steps = _decode_steps(durations, _window(loads, roofline.config.window))
    tokens_per_s = PREFILL_CHUNK / durations.prefill_seconds(PREFILL_CHUNK)
    chip = Chip(roofline.slots, steps[-1], tokens_per_s, 0, steps_s=steps, itl_target_s=itl_target_s)
    prompts_s = tuple(_prompt_s(durations, load.prompt_tokens) for load in loads)
    return Mix(loads, chip, prompts_s, durations.prefill_seconds(0, 1))


def _prompt_s(durations: StepDurations, tokens: int) -> float:
    """Returns the seconds of the prefill steps of a prompt."""
    chunks, rest = divmod(tokens - 1, PREFILL_CHUNK)
    last = PREFILL_BLOCK
    while last < rest + 1:
        last *= 2
    return chunks * durations.prefill_seconds(PREFILL_CHUNK) + durations.prefill_seconds(last, 1)


def _decode_steps(durations: StepDurations, window: float) -> tuple[float, ...]:
    """Returns the seconds of a decode step by its number of requests.

    Args:
      window: Mean number of tokens in the attention window of a request.
    """
    slots = durations.roofline.slots
    sizes = (*part_rows(TPU, slots, durations.roofline.shards), slots)
    rows = (next(size for size in sizes if size >= count) for count in range(slots + 1))
    return tuple(durations.decode_seconds(size, round(count * window)) for count, size in enumerate(rows))


def _window(loads: tuple[ExpectedLoad, ...], size: int) -> float:
    """Returns the mean number of tokens in the attention window of a request that decodes."""
    weights = [load.requests_per_s * load.output_tokens for load in loads]
    fills = [min(size, load.prompt_tokens + load.output_tokens / 2) for load in loads]
    return fsum(weight * fill for weight, fill in zip(weights, fills, strict=True)) / fsum(weights)
