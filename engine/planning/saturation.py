"""Computes how many requests per second a replica ends when there are always more of them than slots."""

from ..capacity.roofline import Roofline
from ..scheduling.prefill_budget import target_seconds
from ..types.config import MAX_PREFILL_ROWS
from .load import ExpectedLoad
from .mix import mix_on
from .replica import Chip


def saturated_requests_per_s(load: ExpectedLoad, roofline: Roofline, device: str, itl_target_s: float | None) -> float:
    """Returns the requests of a load that a replica ends per second while others wait for its slots.

    As many requests end as are prefilled, so that each decode step needs the prefill of a share of them. So many slots
    are in prefill that the scheduler allows that much between two decode steps, and the others decode.

    Args:
      load: Lengths of the requests; their rate is not read.
      roofline: Roofline of a replica, with one data shard and at least one slot.
      device: Name of its device.
      itl_target_s: Target of the scheduler for the inter-token latency; 0 for throughput, None for the default.
    """
    mix = mix_on((load,), roofline, device, itl_target_s)
    chip, (alone_s,) = mix.chip, mix.prompts_s
    for num_prefilling in range(1, chip.slots):
        num_decoding = chip.slots - num_prefilling
        ended, step_s = num_decoding / load.output_tokens, chip.decode(num_decoding)
        prompt_s = alone_s - mix.first_token_s * (1 - 1 / _num_together(ended, alone_s, chip))
        if chip.prefill_s(num_prefilling, num_decoding) >= ended * prompt_s:
            return ended / (step_s + ended * prompt_s)
    return 1 / (alone_s + load.output_tokens * chip.decode(1))


def _num_together(ended: float, prompt_s: float, chip: Chip) -> float:
    """Returns how many prompts' first tokens are sampled together; see `PrefillBudget.max_held`.

    Args:
      ended: Number of prompts that end between two decode steps.
    """
    target_s = target_seconds(chip.itl_target_s, chip.step_s)
    most = min(MAX_PREFILL_ROWS, ended)
    return max(1.0, min(most, target_s / prompt_s) if target_s else most)
