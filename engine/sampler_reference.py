"""The oracle of the sampler: the distribution that a row is drawn from, in float64, by sorting."""

import numpy as np
from jaxtyping import Float

from .request import SamplingParams


def reference_distribution(
    logits: Float[np.ndarray, " V"], params: SamplingParams, num_tokens: int = 0
) -> Float[np.ndarray, " V"]:
    """Probabilities `[V]` of the next token.

    Args:
      logits: `[V]`, the model's own.
      params: of the request.
      num_tokens: how many tokens it has so far; before `min_tokens` no stop id is chosen.
    """
    logits = np.array(logits, np.float64)
    if num_tokens < params.min_tokens:
        logits[list(params.stop_ids)] = -np.inf
    if params.temperature == 0:
        return np.where(np.arange(len(logits)) == np.argmax(logits), 1.0, 0.0)
    weights = np.exp((logits - logits.max()) / params.temperature)
    ordered = np.sort(weights)[::-1]
    if params.top_k:
        weights[weights < ordered[min(params.top_k, len(ordered)) - 1]] = 0
    if params.top_p < 1:
        ordered = np.sort(weights)[::-1]
        enough = np.searchsorted(np.cumsum(ordered), params.top_p * ordered.sum())
        weights[weights < ordered[min(enough, len(ordered) - 1)]] = 0
    weights[weights < params.min_p] = 0
    return np.asarray(weights / weights.sum())
