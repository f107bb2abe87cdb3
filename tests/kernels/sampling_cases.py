"""Inputs of the sampling kernel for its tests."""

from typing import Any

import numpy as np
from roost.engine.types.output_constraint import words_of_mask
from roost.kernels.sampling import SamplingInputs

__all__ = ["inputs_of"]

NEUTRAL = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "repetition_penalty": 1.0,
}  # fmt: skip


def inputs_of(rows: int, vocab: int, uniform: Any = 0.5, **numbers: Any) -> SamplingInputs:
    """Returns the inputs of rows that are drawn with these numbers, without logits processors."""
    words, ids = np.zeros((rows, words_of_mask(vocab)), np.uint32), np.full((rows, 4), -1, np.int32)
    columns = {name: np.broadcast_to(np.float32(number), rows) for name, number in (NEUTRAL | numbers).items()}
    no_rows = np.zeros(rows, np.bool)
    return SamplingInputs(
        is_active=~no_rows,
        is_random=columns["temperature"] > 0,
        numbers=columns,
        uniform=np.broadcast_to(np.float32(uniform), rows),
        bias_ids=ids,
        biases=np.zeros((rows, 4), np.float32),
        stop_ids=ids,
        is_penalized=no_rows,
        recent=ids,
        in_prompt=words,
        is_masked=no_rows,
        allowed=words,
    )
